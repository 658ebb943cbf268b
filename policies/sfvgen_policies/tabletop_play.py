"""Undirected play for ``sfvgen/TabletopReturn-v0``: contact in all its forms, failed ones too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from sfvgen_envs.tabletop_instructions import PLACE_HALF_EXTENT
from sfvgen_envs.tabletop_return import CONTROL_TIMESTEP, MAX_SPEED, TabletopReturnEnv
from sfvgen_envs.tabletop_scene import CUBE_HALF_EDGE

from sfvgen_policies.random import CorrelatedNoise
from sfvgen_policies.tabletop_expert import HOVER_HEIGHT

_ARRIVED = 0.006  # [m]
_PATIENCE = 7  # steps spent on one way-point at most
_AT_A_CUBE = 0.75  # share of the errands that begin at a cube, more or less


class TabletopPlay:
    """Does what a robot may do but an expert never shows.

    Errands (half of the time): grasp at a cube, or beside it, or at nothing, carry what was caught
    to any place and let it go from any height, each broken off at any moment. In between: every
    action number at full speed one way or the other, and correlated noise.

    A world model that has only seen an expert does not know what a grasp that just misses does.

    Args:
        env: a ``sfvgen/TabletopReturn-v0``, wrapped or not.
        miss: standard deviation [m] of where a cube is grasped at, in x and in y.

    Raises:
        ValueError: for another environment, or a negative ``miss``.
    """

    follows_instructions = False

    def __init__(self, env: gym.Env[Any, Any], miss: float = 0.015) -> None:
        if not isinstance(env.unwrapped, TabletopReturnEnv):
            raise ValueError(
                f"TabletopPlay only knows sfvgen/TabletopReturn-v0, not {env.unwrapped}; use the "
                "policy 'random' or one of your own."
            )
        if not miss >= 0:
            raise ValueError(f"miss={miss} is out of range; use 0 or more metres.")
        self._env = env.unwrapped
        self._miss = miss
        self._noise = CorrelatedNoise(4, std=0.7, smoothness=0.8)
        self._rng = np.random.default_rng()
        self._actions = self._play()

    def reset(self, seed: int | None = None) -> None:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._noise.reset(seed)
        self._actions = self._play()

    def act(self, observation: Any = None, instruction: str = "") -> np.ndarray:
        """Return the next action, float32 (4,); both arguments are ignored."""
        return np.clip(next(self._actions), -1, 1).astype(np.float32)

    def _play(self) -> Iterator[np.ndarray]:
        rng = self._rng
        while True:
            game = rng.choice(["errand", "full speed", "noise"], p=[0.5, 0.25, 0.25])
            if game == "errand":
                yield from self._errand(patience=int(rng.integers(4, 40)))
            elif game == "full speed":
                yield from [rng.choice([-1.0, 1.0], 4)] * int(rng.integers(1, 9))
            else:
                self._noise.reset()
                yield from (self._noise.sample() for _ in range(int(rng.integers(3, 17))))

    def _errand(self, patience: int) -> Iterator[np.ndarray]:
        """Actions of one errand, broken off after ``patience`` steps."""
        rng = self._rng
        take, leave = rng.uniform(-PLACE_HALF_EXTENT, PLACE_HALF_EXTENT, (2, 2))
        if rng.random() < _AT_A_CUBE:
            colour = rng.choice(list(self._env.plan.cubes))
            take = self._env.cube_position(colour)[:2] + rng.normal(0, self._miss, 2)
        low = CUBE_HALF_EDGE + abs(rng.normal(0, 0.01))
        drop = rng.uniform(CUBE_HALF_EDGE, HOVER_HEIGHT)
        way = [
            ([*take, HOVER_HEIGHT], 1.0),
            ([*take, low], 1.0),
            ([*take, low], -1.0),
            ([*take, HOVER_HEIGHT], -1.0),
            ([*leave, HOVER_HEIGHT], -1.0),
            ([*leave, drop], -1.0),
            ([*leave, drop], 1.0),
            ([*leave, HOVER_HEIGHT], 1.0),
        ]
        steps = (action for point, grip in way for action in self._go(np.array(point), grip))
        for action, _ in zip(steps, range(patience), strict=False):
            yield action

    def _go(self, point: np.ndarray, grip: float) -> Iterator[np.ndarray]:
        """Actions that lead to a point; at least one, so that the grip has time to act."""
        for _ in range(_PATIENCE):
            way = point - self._env.gripper_position
            yield np.array([*(0.85 * way / (MAX_SPEED * CONTROL_TIMESTEP)), grip])
            if np.linalg.norm(point - self._env.gripper_position) < _ARRIVED:
                break
