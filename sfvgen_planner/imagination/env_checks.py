"""Whether an env is one that a world model was trained on."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import Autoreset, MaxAndSkipObservation

from sfvgen_planner.data.frame_skip import FrameSkip
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination.env import WorldModelEnv


def check_action_space(space: gym.Space[Any], low: list[float], high: list[float]) -> None:
    """Refuse an action space that differs from the one a model was trained on."""
    wanted = f"the world model was trained on Box({low}, {high}, ({len(low)},))"
    if not isinstance(space, gym.spaces.Box):
        raise SfvgenError(
            f"imagination needs a continuous (Box) action space; {wanted}, not {space}"
        )
    if not space.is_bounded("both"):
        raise SfvgenError(
            f"imagination needs a bounded action space; {wanted}, not {space}; put ClipAction "
            "around the ImaginationWrapper instead of inside, or give the env's own space bounds"
        )
    if space.shape != (len(low),):
        raise SfvgenError(f"the env's actions have the shape {space.shape}, but {wanted}")
    if not (np.allclose(space.low, low) and np.allclose(space.high, high)):
        raise SfvgenError(
            f"the env's actions go from {space.low.tolist()} to {space.high.tolist()}, but "
            f"{wanted}; gymnasium.wrappers.RescaleAction converts"
        )


def check_steps(env: gym.Env[Any, Any], frame_skip: int) -> None:
    """Refuse an env whose steps are not a model's frames, one by one and in one episode."""
    # Others' attributes of this name, as MuJoCo's, count what happens within a step.
    found = env.unwrapped.frame_skip if isinstance(env.unwrapped, WorldModelEnv) else 1
    layer: gym.Env[Any, Any] = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, Autoreset | MaxAndSkipObservation):
            raise SfvgenError(
                f"{type(layer).__name__} hides steps or resets from imagination; put Autoreset "
                "around the ImaginationWrapper instead of inside, and FrameSkip in place of others"
            )
        if isinstance(layer, FrameSkip):
            found *= layer.num_steps
        layer = layer.env
    if found != frame_skip:
        raise SfvgenError(
            f"the world model's frames are {frame_skip} env steps apart, but one step of this env "
            f"makes {found}; wrap it as FrameSkip(env, {frame_skip})"
        )
