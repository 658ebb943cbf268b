"""Policies by name."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym

from sfvgen_policies.policy import Policy

POLICIES: dict[str, str] = {
    "random": "sfvgen_policies.random:RandomPolicy",
    "expert": "sfvgen_policies.tabletop_expert:TabletopExpert",
    "play": "sfvgen_policies.tabletop_play:TabletopPlay",
    "still": "sfvgen_policies.still:StillPolicy",
    "timed": "sfvgen_policies.still:TimedPolicy",
}
"""Name of a policy to its ``module:Class``."""

EXPERTS: dict[str, str] = {
    "gymnasium_robotics.": "sfvgen_policies.fetch_expert:FetchExpert",
    "metaworld.": "sfvgen_policies.metaworld_expert:MetaWorldExpert",
    "sfvgen_envs.visual_cube": "sfvgen_policies.ogbench_expert:OGBenchCubeExpert",
    "ogbench.": "sfvgen_policies.ogbench_expert:OGBenchCubeExpert",
}
"""Where an environment's class is defined, to the ``expert`` for it, in place of the usual one."""


def make_policy(spec: str, env: gym.Env[Any, Any], **kwargs: Any) -> Policy:
    """Build a policy for an environment.

    Args:
        spec: a name in ``POLICIES`` or ``"module:Class"``, built as ``Class(env, **kwargs)``;
            ``"expert"`` is the one in ``EXPERTS`` where the environment has one there.
        env: the environment it will act in.
        **kwargs: the policy's own arguments.

    Raises:
        ValueError: the policy is unknown, cannot be imported, is no :class:`Policy`, or refuses
            its arguments.
    """
    known = {**POLICIES, "expert": _expert_for(env)}
    module_name, _, class_name = str(known.get(spec, spec)).partition(":")
    if not module_name or not class_name:
        raise ValueError(
            f"The policy {spec!r} is unknown; choose from {', '.join(sorted(POLICIES))}, or name "
            "a class as 'module:Class'."
        )
    try:
        policy_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"The policy {spec!r} cannot be imported: {error}.") from error
    try:
        policy = policy_class(env, **kwargs)
    except TypeError as error:
        raise ValueError(f"The policy {spec!r} cannot be built with {kwargs}: {error}.") from error
    if not isinstance(policy, Policy):
        raise ValueError(f"{spec!r} is no policy: it needs the methods reset and act.")
    return policy


def _expert_for(env: gym.Env[Any, Any]) -> str:
    defined_in = type(env.unwrapped).__module__
    special = [spec for prefix, spec in EXPERTS.items() if defined_in.startswith(prefix)]
    return special[0] if special else POLICIES["expert"]
