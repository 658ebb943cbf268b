"""A scripted expert for ``sfvgen/TabletopReturn-v0`` that looks into the simulator."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from sfvgen_envs.tabletop_return import CONTROL_TIMESTEP, MAX_SPEED, TabletopReturnEnv
from sfvgen_envs.tabletop_scene import CUBE_HALF_EDGE

from sfvgen_policies.random import CorrelatedNoise

HOVER_HEIGHT = 0.12
_TRAVEL_HEIGHT = 0.085  # above it, the fingers and a carried cube pass over standing cubes
_ALIGNED = 0.010  # near enough in x and y to go straight down [m]
_GAIN = 0.85  # share of the remaining way that one step covers, up to full speed
_OPEN, _CLOSE = 1.0, -1.0
_NOISE_SMOOTHNESS = 0.7
_CAREFUL = 0.07  # share of the noise near a cube or a place


class TabletopExpert:
    """Picks the asked cube, carries it to its place and rises, from any state of the table.

    It keeps no plan: every action follows from the present state alone, so it grasps again what it
    missed or dropped. The grip is always fully opening or fully closing.

    Args:
        env: a ``sfvgen/TabletopReturn-v0``, wrapped or not.
        noise: standard deviation of temporally correlated noise added to the velocities, as a
            fraction of full speed; the whole of it in free motion and while carrying, less on the
            last 10 cm, 7 % of it right above a cube or a place.

    Raises:
        ValueError: for another environment, or a negative noise.
    """

    def __init__(self, env: gym.Env[Any, Any], noise: float = 0.0) -> None:
        if not isinstance(env.unwrapped, TabletopReturnEnv):
            raise ValueError(
                f"The expert only knows sfvgen/TabletopReturn-v0, not {env.unwrapped}; use the "
                "policy 'random' or one of your own."
            )
        self._env = env.unwrapped
        self._noise = CorrelatedNoise(3, noise, _NOISE_SMOOTHNESS)

    def reset(self, seed: int | None = None) -> None:
        self._noise.reset(seed)

    def act(self, observation: Any = None, instruction: str = "") -> np.ndarray:
        """Return the next action, float32 (4,); both arguments are ignored."""
        way, grip, noise_scale = self._intent()
        velocity = _GAIN * way / (MAX_SPEED * CONTROL_TIMESTEP)
        velocity = np.clip(velocity, -1, 1) + noise_scale * self._noise.sample()
        return np.clip([*velocity, grip], -1, 1).astype(np.float32)

    def _intent(self) -> tuple[np.ndarray, float, float]:
        """Return the way to go (3,) [m], the grip and how much of the noise to add."""
        env = self._env
        colour = env.instruction.cube
        gripper, cube = env.gripper_position, env.cube_position(colour)
        if env.is_grasped(colour):
            return self._carry(gripper, cube)
        if env.is_placed():
            way = np.array([0, 0, HOVER_HEIGHT - gripper[2]])
            return way, _OPEN, _CAREFUL
        return self._fetch(gripper, cube)

    def _fetch(self, gripper: np.ndarray, cube: np.ndarray) -> tuple[np.ndarray, float, float]:
        way = np.array([*(cube - gripper)[:2], HOVER_HEIGHT - gripper[2]])
        opening = self._env.gripper_opening
        if np.linalg.norm(way[:2]) > _ALIGNED:
            if gripper[2] < _TRAVEL_HEIGHT:
                way[:2] = 0
            return way, _OPEN, _noise_scale(way)
        way[2] = cube[2] - gripper[2]
        if way[2] > -0.006:
            if opening < 0.3:  # closed beside the cube: rise and try again
                return np.array([0, 0, HOVER_HEIGHT - gripper[2]]), _OPEN, _CAREFUL
            return way, _CLOSE, _CAREFUL
        if opening < 0.9:
            way[2] = max(way[2], _TRAVEL_HEIGHT - gripper[2])
        return way, _OPEN, _CAREFUL

    def _carry(self, gripper: np.ndarray, cube: np.ndarray) -> tuple[np.ndarray, float, float]:
        way = np.array([*(self._env.target_xy - cube[:2]), HOVER_HEIGHT - gripper[2]])
        if np.linalg.norm(way[:2]) > _ALIGNED:
            if gripper[2] < _TRAVEL_HEIGHT:
                way[:2] = 0
            return way, _CLOSE, _noise_scale(way)
        way[2] = CUBE_HALF_EDGE - cube[2]
        low_enough = way[2] > -0.003
        return way, _OPEN if low_enough else _CLOSE, _CAREFUL


def _noise_scale(way: np.ndarray) -> float:
    return float(np.clip(np.linalg.norm(way[:2]) / 0.10, _CAREFUL, 1.0))
