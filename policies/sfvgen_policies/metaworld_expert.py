"""Meta-World's own scripted experts."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np

from sfvgen_policies.noisy_expert import NoisyExpert

_BY_HAND = ("reach-v3", "reach-wall-v3")
"""Tasks whose goal is for the fingers, while Meta-World's policy brings the wrist there."""


class MetaWorldExpert(NoisyExpert):
    """Does a task of Meta-World with the scripted policy that Meta-World has for it.

    In the reach tasks that policy stops 4.5 cm above the goal, where success ends at 5 cm: too near
    the edge to be learnt from. Here it is told a goal that brings the fingers to the true one.

    Args:
        env: a task of Meta-World with its goal in the observation, wrapped or not.
        noise: see :class:`~sfvgen_policies.noisy_expert.NoisyExpert`.

    Raises:
        ValueError: for another environment, or a negative noise.
    """

    def __init__(self, env: gym.Env[Any, Any], noise: float = 0.0) -> None:
        task = type(env.unwrapped)
        if not task.__module__.startswith("metaworld."):
            raise ValueError(
                f"MetaWorldExpert only knows the tasks of Meta-World, not {env.unwrapped}; use the "
                "policy 'random' or one of your own."
            )
        # Meta-World is there, for this is one of its environments.
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP

        names = [name for name, known in ALL_V3_ENVIRONMENTS.items() if known is task]
        if not names:
            raise ValueError(f"Meta-World has no expert for {task.__name__}.")
        expert_class: Any = ENV_POLICY_MAP[names[0]]
        self._expert = expert_class()
        self._fingers: Any = env.unwrapped if names[0] in _BY_HAND else None
        super().__init__(3, noise)

    def act(self, observation: Any, instruction: str = "") -> np.ndarray:
        """Return the next action, float32 (4,), from the environment's own observation (39,).

        The instruction is ignored.
        """
        if self._fingers is not None:
            observation = observation.copy()
            observation[-3:] += self._fingers.get_endeff_pos() - self._fingers.tcp_center
        with warnings.catch_warnings():
            # It warns of each action that is clipped, which is how it is meant to work.
            warnings.simplefilter("ignore")
            action = self._expert.get_action(observation)
        return self._disturbed(action)
