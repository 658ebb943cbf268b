"""Wrappers for environments that are told what to do in words, and for those of others."""

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
        ValueError: the observation is no Dict, or it already has an ``instruction``; or, at a reset
            or step, the env tells no instruction or one that is no text of the space.
    """

    def __init__(self, env: gym.Env[dict[str, Any], Any], max_length: int = 128) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, max_length=max_length)
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, gym.spaces.Dict):
            raise ValueError(f"InstructionObservation needs a Dict observation, not {space}.")
        if "instruction" in space.spaces:
            raise ValueError("The observation already has an 'instruction'; wrap it only once.")
        self._text = gym.spaces.Text(max_length, min_length=0, charset=string.printable)
        self.observation_space = gym.spaces.Dict({**space.spaces, "instruction": self._text})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_instruction(observation, info), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_instruction(observation, info), reward, terminated, truncated, info

    def _with_instruction(
        self, observation: dict[str, Any], info: dict[str, Any]
    ) -> dict[str, Any]:
        instruction = info.get("instruction")
        if not self._text.contains(instruction):
            raise ValueError(
                "InstructionObservation needs info['instruction'] with printable ASCII characters, "
                f"{self._text.max_length} at most (max_length), got {instruction!r}."
            )
        return {**observation, "instruction": instruction}


class FixedInstruction(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Say the same words in every step, as ``info["instruction"]``.

    Args:
        env: any environment.
        instruction: what the robot is told.
    """

    def __init__(self, env: gym.Env[Any, Any], instruction: str) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, instruction=instruction)
        super().__init__(env)
        self.instruction = instruction

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {**info, "instruction": self.instruction}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, "instruction": self.instruction}


class SeededReset(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Give the seed of ``reset`` to an environment that ignores it but draws from ``np_random``."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.unwrapped.np_random, _ = gym.utils.seeding.np_random(seed)
        return self.env.reset(seed=seed, options=options)


class DrawnAsReset(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Show what ``reset`` drew in the first picture already, in an environment on MuJoCo.

    Where ``reset`` moves a mark in MuJoCo's model last of all, the picture has it where it was
    before, until the first step.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        # Not at the top: this package is used without MuJoCo too.
        import mujoco

        found = self.env.reset(seed=seed, options=options)
        simulated: Any = self.unwrapped
        mujoco.mj_forward(simulated.model, simulated.data)
        return found
