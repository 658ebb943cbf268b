"""An environment whose pictures tell the seed, the step and the action that led to them."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium as gym
import numpy as np

SIZE = 8
COUNTING = "tests.data.counting_env:Counting-v0"
SCRIPTED = "tests.data.counting_env:ScriptedPolicy"


def expected_frame(seed: int, step: int, action: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Red tells the seed, green the step, blue the action's first component."""
    frame = np.zeros((size, size, 3), np.uint8)
    frame[:] = (seed % 256, step % 256, round(100 * (float(action[0]) + 1)))
    return frame


def num_steps(seed: int) -> int:
    """Episodes differ in length, and some are longer than a chunk of 16 frames."""
    return 5 + 7 * (seed % 3)


def expected_success(step: int) -> bool:
    """What an environment with a `success_key` says after a step; the first step is number 1."""
    return step % 3 == 2


def expected_actions(seed: int) -> np.ndarray:
    """What `ScriptedPolicy` does."""
    generator = np.random.default_rng(seed)
    return generator.uniform(-1, 1, (num_steps(seed), 2)).astype(np.float32)


class CountingEnv(gym.Env[np.ndarray, np.ndarray]):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(
        self,
        render_mode: str | None = None,
        seconds_per_step: float = 0.0,
        size: int = SIZE,
        fatal_seed: int | None = None,
        closed_file: str | None = None,
        success_key: str | None = None,
    ) -> None:
        self.render_mode = render_mode
        self.seconds_per_step = seconds_per_step
        self.size = size
        self.fatal_seed = fatal_seed
        self.closed_file = closed_file
        self.success_key = success_key
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = gym.spaces.Box(0, np.inf, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        assert seed is not None
        if seed == self.fatal_seed:
            os._exit(3)
        self.seed, self.count, self.action = seed, 0, np.zeros(2, np.float32)
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(self.seconds_per_step)
        self.action = np.array(action)
        self.count += 1
        over = self.count == num_steps(self.seed)
        return self._observation(), float(self.count), over, False, self._info()

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        return expected_frame(self.seed, self.count, self.action, self.size)

    def close(self) -> None:
        if self.closed_file is not None:
            with open(self.closed_file, "a") as file:
                file.write(f"{os.getpid()}\n")

    def _observation(self) -> np.ndarray:
        return np.array([self.seed, self.count], np.float32)

    def _info(self) -> dict[str, Any]:
        told = {} if self.success_key is None else {self.success_key: expected_success(self.count)}
        return told | {
            "instruction": "begin" if self.count < 3 else "go on",
            "distance_m": np.float64(0.25),
            "where": np.array([1.0, np.nan]),
            "state": np.zeros(10_000),
            "object": object(),
        }


class DiscreteEnv(CountingEnv):
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.action_space = gym.spaces.Discrete(3)  # type: ignore[assignment]


class UnboundedEnv(CountingEnv):
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


class BlindEnv(CountingEnv):
    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(render_mode=None)


class ScriptedPolicy:
    """Draws its actions from the seed; `spoil` makes it do something forbidden at step 2."""

    def __init__(self, env: gym.Env[Any, Any], spoil: str | None = None) -> None:
        self.spoil = spoil

    def reset(self, seed: int | None = None) -> None:
        assert seed is not None
        self.actions = iter(expected_actions(seed))
        self.step = 0

    def act(self, observation: np.ndarray, instruction: str) -> np.ndarray:
        action = next(self.actions)
        if self.step == 2 and self.spoil is not None:
            action = {
                "nan": np.array([np.nan, 0]),
                "range": np.array([0, 1.5]),
                "shape": np.zeros(3),
            }[self.spoil]
        self.step += 1
        return action


for _class in (CountingEnv, DiscreteEnv, UnboundedEnv, BlindEnv):
    gym.register(
        id=f"{_class.__name__.removesuffix('Env')}-v0",
        entry_point=f"{__name__}:{_class.__name__}",
        disable_env_checker=True,
    )
# Gymnasium cannot write down an environment that is registered as a class.
gym.register(id="CountingClass-v0", entry_point=CountingEnv, disable_env_checker=True)
