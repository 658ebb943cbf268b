"""Policies that do nothing, or nothing for a part of the episode."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from sfvgen_policies.policy import Policy
from sfvgen_policies.registry import make_policy


class StillPolicy:
    """Action zero, or the one within the bounds that is nearest to it.

    Args:
        env: environment with a Box action space.

    Raises:
        ValueError: the action space is no Box.
    """

    follows_instructions = False

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        space = env.action_space
        if not isinstance(space, gym.spaces.Box):
            raise ValueError(f"StillPolicy needs a Box action space, not {space}.")
        self._action = np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)

    def reset(self, seed: int | None = None) -> None:
        pass

    def act(self, observation: Any = None, instruction: str = "") -> np.ndarray:
        return self._action.copy()


class TimedPolicy:
    """Does what another policy does in some steps of an episode, and stands still in the others.

    It begins late or stops before it is done: a policy whose quality can be set.

    Args:
        env: environment with a Box action space.
        policy: the other policy, as :func:`make_policy` takes it.
        begin: first step of the episode that the other policy acts in, at least 0.
        end: step from which on it stands still, at least ``begin``; None acts to the end.
        **kwargs: the other policy's own arguments.

    Raises:
        ValueError: the steps are out of range, or the other policy cannot be made.
    """

    # What begins late or is broken off is not what the words asked for.
    follows_instructions = False

    def __init__(
        self,
        env: gym.Env[Any, Any],
        policy: str = "expert",
        begin: int = 0,
        end: int | None = None,
        **kwargs: Any,
    ) -> None:
        if begin < 0 or (end is not None and end < begin):
            raise ValueError(f"begin={begin}, end={end} are out of range; use 0 <= begin <= end.")
        self._policy: Policy = make_policy(policy, env, **kwargs)
        self._still = StillPolicy(env)
        self._begin, self._end = begin, end
        self._num_steps = 0

    def reset(self, seed: int | None = None) -> None:
        self._policy.reset(seed)
        self._num_steps = 0

    def act(self, observation: Any, instruction: str) -> np.ndarray:
        step = self._num_steps
        self._num_steps += 1
        if step < self._begin or (self._end is not None and step >= self._end):
            return self._still.act()
        return self._policy.act(observation, instruction)
