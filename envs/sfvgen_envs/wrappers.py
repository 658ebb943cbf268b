"""Wrappers for environments that are told what to do in words."""

from __future__ import annotations

import string
from typing import Any

import gymnasium as gym


class InstructionObservation(
    gym.Wrapper[dict[str, Any], Any, dict[str, Any], Any], gym.utils.RecordConstructorArgs
):
    """Add ``info["instruction"]`` to a Dict observation, as the ``Text`` entry ``instruction``.

    Args:
        env: environment with a Dict observation that reports ``info["instruction"]``.
        max_length: longest instruction in characters.

    Raises:
        ValueError: the observation is no Dict, or it already has an ``instruction``.
    """

    def __init__(self, env: gym.Env[dict[str, Any], Any], max_length: int = 128) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, max_length=max_length)
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, gym.spaces.Dict):
            raise ValueError(f"InstructionObservation needs a Dict observation, not {space}.")
        if "instruction" in space.spaces:
            raise ValueError("The observation already has an 'instruction'; wrap it only once.")
        text = gym.spaces.Text(max_length, min_length=0, charset=string.printable)
        self.observation_space = gym.spaces.Dict({**space.spaces, "instruction": text})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_instruction(observation, info), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_instruction(observation, info), reward, terminated, truncated, info

    @staticmethod
    def _with_instruction(observation: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        return {**observation, "instruction": info["instruction"]}
