"""Random actions that change smoothly, for environments with a bounded Box action space."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class CorrelatedNoise:
    """Stationary Gaussian noise with correlation ``smoothness`` from one step to the next.

    ``x[t+1] = smoothness * x[t] + sqrt(1 - smoothness^2) * std * e`` with e standard normal, so
    every x[t] has standard deviation ``std``, the first one included.

    Args:
        size: numbers drawn per step.
        std: standard deviation of each.
        smoothness: in [0, 1).
    """

    def __init__(self, size: int, std: float, smoothness: float) -> None:
        if not 0 <= std < np.inf:
            raise ValueError(f"The noise's standard deviation is {std}; use a number from 0 on.")
        if not 0 <= smoothness < 1:
            raise ValueError(f"smoothness={smoothness} is out of range; use 0 <= smoothness < 1.")
        self._size, self._std, self._smoothness = size, std, smoothness
        self._rng = np.random.default_rng()
        self._value: np.ndarray | None = None

    def reset(self, seed: int | None = None) -> None:
        """Forget the last value, and start the generator anew if a seed is given."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._value = None

    def sample(self) -> np.ndarray:
        """Draw the next value, (size,)."""
        fresh = self._std * self._rng.standard_normal(self._size)
        if self._value is None:
            self._value = fresh
        else:
            keep = self._smoothness
            self._value = keep * self._value + np.sqrt(1 - keep**2) * fresh
        return self._value


class RandomPolicy:
    """Correlated Gaussian actions around the middle of the action space, clipped to it.

    Args:
        env: environment with a bounded Box action space.
        std: standard deviation as a fraction of half the range of each action.
        smoothness: correlation from one step to the next, in [0, 1); 0 draws independently.

    Raises:
        ValueError: the action space is no bounded Box, or an argument is out of range.
    """

    follows_instructions = False

    def __init__(self, env: gym.Env[Any, Any], std: float = 0.7, smoothness: float = 0.8) -> None:
        space = env.action_space
        if not isinstance(space, gym.spaces.Box) or not space.is_bounded():
            raise ValueError(f"RandomPolicy needs a bounded Box action space, not {space}.")
        self._space = space
        self._middle = (space.low.astype(np.float64) + space.high) / 2
        self._half_range = (space.high.astype(np.float64) - space.low) / 2
        self._noise = CorrelatedNoise(int(np.prod(space.shape)), std, smoothness)

    def reset(self, seed: int | None = None) -> None:
        self._noise.reset(seed)

    def act(self, observation: Any, instruction: str = "") -> np.ndarray:
        noise = self._noise.sample().reshape(self._middle.shape)
        action = (self._middle + self._half_range * noise).astype(self._space.dtype)
        return np.clip(action, self._space.low, self._space.high)
