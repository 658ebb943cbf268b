"""A plan, and what every planner promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
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

    def reset(self, imagination: ImaginationWrapper | None = None) -> None:
        """Forget what was planned before, for one imagination or for all: a new episode begins."""

    def plan(self, imagination: ImaginationWrapper, goal: Goal, seed: int | None = None) -> Plan:
        """Plan from the present moment; ``seed`` fixes the search and the imagined noise."""

    def action(self, plan: Plan, step: int, frame: np.ndarray) -> np.ndarray:
        """The action ``(A,)`` for ``step`` of ``plan``, seeing the real ``frame`` (H, W, 3)."""


class BatchPlanner(ABC):
    """A planner for one imagination, or for several side by side."""

    @abstractmethod
    def reset(self, imagination: ImaginationWrapper | None = None) -> None:
        """Forget what was planned before; see :class:`Planner`."""

    @abstractmethod
    def plan_batch(
        self,
        imaginations: Sequence[ImaginationWrapper],
        goals: Sequence[Goal],
        seeds: Sequence[int | None],
    ) -> list[Plan]:
        """Plan for each of E imaginations, in calls of the world model for all of them.

        Each plan is the one that ``plan`` makes for that imagination, goal and seed, as far as
        rounding allows.

        Args:
            imaginations: of one world model and one memory.
            goals: one for each.
            seeds: likewise.
        """

    def plan(self, imagination: ImaginationWrapper, goal: Goal, seed: int | None = None) -> Plan:
        """Plan from the present moment; see :class:`Planner`."""
        return self.plan_batch([imagination], [goal], [seed])[0]

    def action_batch(
        self, plans: Sequence[Plan], steps: Sequence[int], frames: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Actions ``(E, A)`` for one step of each plan, by default the planned ones.

        Args:
            plans: E of them.
            steps: of the plans.
            frames: the real ones ``(H, W, 3)``.
        """
        return np.stack([plan.actions[step] for plan, step in zip(plans, steps, strict=True)])

    def action(self, plan: Plan, step: int, frame: np.ndarray) -> np.ndarray:
        """The action for one step of a plan; see :class:`Planner`."""
        action: np.ndarray = self.action_batch([plan], [step], [frame])[0]
        return action


def plan_batch(
    planner: Planner,
    imaginations: Sequence[ImaginationWrapper],
    goals: Sequence[Goal],
    seeds: Sequence[int | None],
) -> list[Plan]:
    """Plan with any planner; one that is no :class:`BatchPlanner` makes one plan after another."""
    if isinstance(planner, BatchPlanner):
        return planner.plan_batch(imaginations, goals, seeds)
    return [
        planner.plan(imagination, goal, seed)
        for imagination, goal, seed in zip(imaginations, goals, seeds, strict=True)
    ]


def action_batch(
    planner: Planner, plans: Sequence[Plan], steps: Sequence[int], frames: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Actions of any planner; see :meth:`BatchPlanner.action_batch`."""
    if isinstance(planner, BatchPlanner):
        return list(planner.action_batch(plans, steps, frames))
    return [
        planner.action(plan, step, frame)
        for plan, step, frame in zip(plans, steps, frames, strict=True)
    ]
