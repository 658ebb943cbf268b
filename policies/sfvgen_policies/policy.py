"""What every policy can do: expert, random, planner and learned ones alike."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Policy(Protocol):
    """Chooses one action at a time, told in words what to do.

    A policy that does not listen sets ``follows_instructions = False``; recorded episodes then
    carry no instruction.
    """

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode; call it right after the environment's own ``reset``.

        Args:
            seed: of the policy's own random choices; None continues the running generator.
        """
        ...

    def act(self, observation: Any, instruction: str) -> np.ndarray:
        """Return an action of the environment's action space.

        Args:
            observation: the environment's latest observation.
            instruction: what is asked now; empty where the task has no words.
        """
        ...
