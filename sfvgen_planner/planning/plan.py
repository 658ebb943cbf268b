"""A plan, and what every planner promises."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sfvgen_planner.imagination import ImaginationWrapper

Goal = str | np.ndarray
"""A language instruction, or a goal image ``(H, W, 3)`` uint8."""


@dataclass(frozen=True)
class Plan:
    """Actions to take and the future that they are imagined to bring.

    Attributes:
        actions: ``(T, A)`` float32 in env units.
        frames: the imagined frames ``(T, H, W, 3)`` uint8, ``frames[t]`` following
            ``actions[t]``.
        cost: what the planner minimised, for these actions; ``None`` where it minimises nothing.
        diagnostics: JSON-able details of the search.
    """

    actions: np.ndarray
    frames: np.ndarray
    cost: float | None = None
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Steps T."""
        return len(self.actions)


class Planner(Protocol):
    """Turns a goal into a plan from the present moment of an imagination."""

    def reset(self) -> None:
        """Forget what was planned before: a new episode begins."""

    def plan(self, imagination: ImaginationWrapper, goal: Goal, seed: int | None = None) -> Plan:
        """Plan from the present moment; ``seed`` fixes the search and the imagined noise."""

    def action(self, plan: Plan, step: int, frame: np.ndarray) -> np.ndarray:
        """The action ``(A,)`` for ``step`` of ``plan``, seeing the real ``frame`` (H, W, 3)."""
