"""A scripted expert for Gymnasium-Robotics' FetchPush and FetchPickAndPlace."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from sfvgen_policies.noisy_expert import NoisyExpert

_MAX_STEP = 0.05  # way of the gripper's target in one step at full speed [m]
_GAIN = 0.6  # share of the remaining way that one step covers, up to full speed
_OPEN, _CLOSE = 1.0, -1.0

# Heights above the centre of a block that stands on the table [m].
_TRAVEL_HEIGHT = 0.07
_PUSH_HEIGHT = 0.0
_LOW = 0.05  # below it the gripper would bump into the block

_BEHIND = 0.075  # where a push begins, from the block's centre [m]
_ASIDE = 0.02  # a push goes on while the gripper is at most so far beside its line [m]
_NEAR_GOAL = 0.015
_PUSH_GAIN = 0.35  # the block slides on after a fast push

_ALIGNED = 0.012  # near enough in x and y to go straight down [m]
_AT_BLOCK = 0.012
_GRASPED = 0.055  # opening of the fingers around a block, at most [m]


class FetchExpert(NoisyExpert):
    """Pushes the block to the mark, or grasps it and brings it there.

    It keeps no plan: every action follows from the latest observation alone, so it goes around a
    block that slipped away, and grasps again what it missed.

    Args:
        env: a FetchPush or FetchPickAndPlace of Gymnasium-Robotics, wrapped or not.
        noise: see :class:`~sfvgen_policies.noisy_expert.NoisyExpert`.

    Raises:
        ValueError: for another environment, or a negative noise.
    """

    def __init__(self, env: gym.Env[Any, Any], noise: float = 0.0) -> None:
        name = type(env.unwrapped).__name__
        if name not in ("MujocoFetchPushEnv", "MujocoFetchPickAndPlaceEnv"):
            raise ValueError(
                f"FetchExpert only knows FetchPush and FetchPickAndPlace, not {env.unwrapped}; use "
                "the policy 'random' or one of your own."
            )
        self._pushes = name == "MujocoFetchPushEnv"
        self._table: float = env.unwrapped.height_offset  # type: ignore[attr-defined]
        super().__init__(3, noise)

    def act(self, observation: Any, instruction: str = "") -> np.ndarray:
        """Return the next action, float32 (4,), from the environment's own observation.

        The instruction is ignored.
        """
        state = observation["observation"]
        gripper, block, goal = state[:3], state[3:6], observation["desired_goal"]
        if self._pushes:
            velocity, grip = self._push(gripper, block, goal), _CLOSE
        else:
            way, grip = self._bring(gripper, block, goal, opening=float(state[9:11].sum()))
            velocity = _towards(way)
        return self._disturbed(np.array([*velocity, grip]))

    def _push(self, gripper: np.ndarray, block: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return the velocity (3,) as a fraction of full speed."""
        height = gripper[2] - self._table
        to_goal = (goal - block)[:2]
        distance = float(np.linalg.norm(to_goal))
        if distance < _NEAR_GOAL:
            return _towards(np.array([0, 0, _TRAVEL_HEIGHT - height]))
        line = to_goal / distance
        ahead = float((gripper - block)[:2] @ line)
        aside = (gripper - block)[:2] - ahead * line
        if ahead < 0 and np.linalg.norm(aside) < _ASIDE:
            if height > _LOW - 0.02 and ahead > -_BEHIND + 0.02:
                return _towards(np.array([*(-0.03 * line), 0]))
            down = _towards(np.array([0, 0, _PUSH_HEIGHT - height]))
            if height > _LOW - 0.02:
                return down
            gap = max(0.0, -ahead - 0.045)
            speed = (_PUSH_GAIN * distance + gap) / _MAX_STEP
            return min(speed, 0.6) * np.array([*line, 0]) - _towards(np.array([*aside, 0])) + down
        behind = block[:2] - _BEHIND * line - gripper[:2]
        if height < _LOW:
            return _towards(np.array([0, 0, _TRAVEL_HEIGHT - height]))
        return _towards(np.array([*behind, _TRAVEL_HEIGHT - height]))

    def _bring(
        self, gripper: np.ndarray, block: np.ndarray, goal: np.ndarray, opening: float
    ) -> tuple[np.ndarray, float]:
        """Return the way to go (3,) [m] and the grip."""
        to_block = block - gripper
        if np.linalg.norm(to_block) < 2 * _AT_BLOCK and opening < _GRASPED:
            return goal - block, _CLOSE
        if np.linalg.norm(to_block) < _AT_BLOCK:
            return np.zeros(3), _CLOSE
        if np.linalg.norm(to_block[:2]) < _ALIGNED:
            return to_block, _OPEN
        above = np.array([*to_block[:2], block[2] + _TRAVEL_HEIGHT - gripper[2]])
        if gripper[2] < block[2] + _LOW:
            above[:2] = 0
        return above, _OPEN


def _towards(way: np.ndarray) -> np.ndarray:
    """The velocity that covers most of a way, as a fraction of full speed."""
    return np.clip(_GAIN * way / _MAX_STEP, -1, 1)
