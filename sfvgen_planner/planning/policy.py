"""A planner as a policy, so that it runs wherever a policy runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from sfvgen_planner.errors import check_counts, check_seed, require
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning.plan import Goal, Plan, Planner, action_batch, plan_batch

_PATCH_SIZE = 6


@dataclass(frozen=True)
class PolicyConfig:
    """When :class:`PlanningPolicy` plans again.

    Attributes:
        num_executed_steps: steps of a plan that are executed; one chunk of the model by default.
        max_departure: plan again when the :func:`departure` of the present frame from the imagined
            one exceeds this many grey levels (of 255); ``None`` never does. Chosen on episodes of
            the table task, so that a cube which is its own width from where it was imagined is
            mostly noticed; where the picture is imprecise, so are ordinary errors: no threshold
            tells all of them apart.
        min_executed_steps: steps of a plan that are executed before a departure counts, which
            bounds the number of plans where the model keeps imagining what does not happen.
    """

    num_executed_steps: int | None = None
    max_departure: float | None = 85.0
    min_executed_steps: int = 4

    def __post_init__(self) -> None:
        check_counts(self, "num_executed_steps", "min_executed_steps")
        require(
            self.max_departure is None or self.max_departure > 0,
            f"max_departure must be positive, got {self.max_departure}",
        )


@dataclass(frozen=True)
class PlanRecord:
    """A plan as it was made.

    Attributes:
        step: of the episode.
        goal: that was planned for.
        plan: what came of it.
        seconds: that it took; where several were made together, an equal share of their time.
        episode: number of the episode, of those that its environment was reset for.
    """

    step: int
    goal: Goal
    plan: Plan
    seconds: float
    episode: int


class PlanningPolicy:
    """Plan in the imagination and act.

    It plans again when the plan is used up, when the instruction changes, and when what happens
    departs from what was imagined. Several policies that share a planner act together by
    :func:`act_batch`.

    Args:
        imagination: the env that the actions are executed in; the policy reads the present moment
            from it, so it must be the one that is stepped.
        planner: for example a :class:`~sfvgen_planner.planning.VideoPlanner`.
        config: when to plan again.
        goal: a fixed goal, such as an image; by default the instruction given to :meth:`act`.
    """

    def __init__(
        self,
        imagination: ImaginationWrapper,
        planner: Planner,
        config: PolicyConfig | None = None,
        goal: Goal | None = None,
    ) -> None:
        kind = type(imagination).__name__
        require(
            isinstance(imagination, ImaginationWrapper),
            f"a PlanningPolicy needs the ImaginationWrapper itself, got {kind}; put other "
            "wrappers, such as TimeLimit, inside it",
        )
        self.imagination = imagination
        self.planner = planner
        self.config = config or PolicyConfig()
        self.goal = goal
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode; ``seed`` makes its plans repeatable."""
        check_seed(seed)
        self.planner.reset(self.imagination)
        self.plans: list[PlanRecord] = []
        self._rng = np.random.default_rng(seed)

    def act(self, observation: Any, instruction: str) -> np.ndarray:
        """The next action ``(A,)`` in env units."""
        return act_batch([self], [instruction])[0]

    def _needs_plan(self, frame: np.ndarray, goal: Goal) -> bool:
        if not self.plans:
            return True
        record = self.plans[-1]
        # A plan for the episode before is none for this one, if reset() was forgotten.
        if record.episode != self.imagination.num_episodes:
            return True
        taken = self.imagination.num_steps - record.step
        executed = self.config.num_executed_steps
        if executed is None:
            executed = self.imagination.world_model.config.num_future_frames
        if not 0 <= taken < min(executed, len(record.plan)):
            return True
        if self.goal is None and goal != record.goal:
            return True
        if self.config.max_departure is None or taken < self.config.min_executed_steps:
            return False
        return departure(frame, record.plan.frames[taken - 1]) > self.config.max_departure


def act_batch(policies: Sequence[PlanningPolicy], instructions: Sequence[str]) -> list[np.ndarray]:
    """The next action ``(A,)`` of each policy; those that need a plan now are planned together.

    Args:
        policies: that share a planner; their imaginations share a world model and a memory. Others,
            such as those whose episode has ended, rest and cost nothing.
        instructions: one for each.

    Raises:
        SfvgenError: where they do not share their planner, there are none, or not as many
            instructions.
    """
    require(len(policies) > 0, "there must be at least one policy")
    require(
        len(instructions) == len(policies),
        f"{len(policies)} policies need as many instructions, got {len(instructions)}",
    )
    planner = policies[0].planner
    require(
        all(policy.planner is planner for policy in policies),
        "policies that act together must share one planner",
    )
    frames = [policy.imagination.past_frames[-1] for policy in policies]
    goals = [
        instruction if policy.goal is None else policy.goal
        for policy, instruction in zip(policies, instructions, strict=True)
    ]
    needing = [
        (policy, goal)
        for policy, frame, goal in zip(policies, frames, goals, strict=True)
        if policy._needs_plan(frame, goal)
    ]
    if needing:
        _make_plans(planner, needing)
    records = [policy.plans[-1] for policy in policies]
    steps = [
        policy.imagination.num_steps - record.step
        for policy, record in zip(policies, records, strict=True)
    ]
    actions = action_batch(planner, [record.plan for record in records], steps, frames)
    space = cast(gym.spaces.Box, policies[0].imagination.action_space)
    # First the kind of number: to round is to leave the bounds.
    return [np.clip(action.astype(space.dtype), space.low, space.high) for action in actions]


def _make_plans(planner: Planner, needing: Sequence[tuple[PlanningPolicy, Goal]]) -> None:
    started = time.perf_counter()
    imaginations = [policy.imagination for policy, _ in needing]
    goals = [goal for _, goal in needing]
    seeds = [int(policy._rng.integers(2**31)) for policy, _ in needing]
    plans = plan_batch(planner, imaginations, goals, seeds)
    seconds = (time.perf_counter() - started) / len(plans)
    for (policy, goal), plan in zip(needing, plans, strict=True):
        own = policy.imagination
        policy.plans.append(PlanRecord(own.num_steps, goal, plan, seconds, own.num_episodes))


def departure(frame: np.ndarray, imagined: np.ndarray) -> float:
    """How far two images differ where they differ most, in grey levels (0..255).

    The largest root mean square difference over patches of 6x6 pixels: over the whole image, a
    small thing in another place counts no more than the model's ordinary errors. Each patch may be
    one pixel off, which at edges would else count as much.

    Args:
        frame: ``(H, W, 3)`` uint8.
        imagined: likewise.
    """
    size = frame.shape[:2]
    padded = np.pad(imagined.astype(np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    shifted = sliding_window_view(padded, size, axis=(0, 1))  # (3, 3, RGB, H, W)
    squares = np.square(shifted - np.moveaxis(frame, -1, 0)).mean(axis=2).reshape(-1, *size)
    means = torch.nn.functional.avg_pool2d(torch.from_numpy(squares), _PATCH_SIZE, stride=1)
    return float(means.amin(dim=0).max().sqrt())
