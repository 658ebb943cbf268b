"""Checkpoints of Stable-Baselines3 as policies to evaluate."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
from sfvgen_policies import Policy
from sfvgen_policies.sb3 import SB3Policy

from sfvgen_planner.evaluation.policy_ladder import Rung
from sfvgen_planner.imagination import ImaginationWrapper, ObservationEncoder
from sfvgen_planner.imagination.sb3 import EncodedPolicy
from sfvgen_planner.imagination.sb3_file import load_sb3


def sb3_rung(
    path: Path, env: ImaginationWrapper, encoder: ObservationEncoder, model: str, device: str
) -> Rung:
    """A PPO or SAC checkpoint as a policy that goes by the file's name without ``.zip``.

    It may have learnt from the camera's picture, from what ``encoder`` makes of picture and
    instruction, or from the environment's whole Dict. The last one cannot be seen in imagination.

    Args:
        path: of the checkpoint; see :func:`~sfvgen_planner.imagination.sb3_file.load_sb3`.
        env: that it will act in.
        encoder: of the world model.
        model: that the encoder is of, told with the figures of what sees through it.
        device: of the policy.

    Raises:
        SfvgenError: the checkpoint cannot be loaded, or was trained on other observations or
            actions.
    """
    shown = env.observation_space
    picture = shown["image"] if isinstance(shown, gym.spaces.Dict) else shown
    agent = load_sb3(path, (encoder.space, picture, shown), env.action_space, device)

    if agent.observation_space == encoder.space:

        def encoded(env: ImaginationWrapper) -> Policy:
            return EncodedPolicy(env, agent, encoder)

        return Rung(path.stem, encoded, acts_on_images=True, fields={"model": model})
    size = encoder.image_size
    return Rung(
        path.stem,
        lambda env: SB3Policy(env, agent),
        acts_on_images=agent.observation_space.shape == (3, size, size),
    )
