"""Working through a goal's subgoals one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sfvgen_planner.errors import SfvgenError, require, require_count
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning.policy import PlanningPolicy
from sfvgen_planner.planning.subgoals import Subgoals
from sfvgen_planner.world_model.outcome_head import OutcomeHead

IsAchieved = Callable[[ImaginationWrapper, str], bool]
"""Whether the present moment shows an instruction achieved: a head, or the env's own word."""


class SeenAchieved:
    """The outcome head sees the instruction achieved, on the last two frames that were observed.

    A single frame may look right by chance. An instruction that refers to the past, such as
    "return the red cube", can't be judged by what is seen.

    Args:
        outcome_head: of the world model that the imagination has.
        success_threshold: probability in (0, 1] that counts as success.

    Raises:
        SfvgenError: there is no head, or the threshold is out of range.
    """

    def __init__(self, outcome_head: OutcomeHead | None, success_threshold: float = 0.9) -> None:
        if outcome_head is None:
            raise SfvgenError(
                "the model has no outcome head, which sees whether a subgoal is achieved; train "
                "one, or give a function that asks the environment"
            )
        require(
            0 < success_threshold <= 1,
            f"success_threshold must be above 0 and at most 1, got {success_threshold}",
        )
        self.outcome_head = outcome_head
        self.success_threshold = success_threshold

    @torch.no_grad()
    def __call__(self, imagination: ImaginationWrapper, instruction: str) -> bool:
        """Whether it is achieved now."""
        model = imagination.world_model
        # A memory may shorten the model's context, `past_frames`, to a single frame.
        frames = imagination.live_episode.last_frames(2)
        latents = model.encode(frames[None])[0].transpose(0, 1).float()
        head = self.outcome_head.to(latents.device)
        token_ids = head.tokenize(model, [instruction]).to(latents.device)
        logits = head.success_logits(latents, token_ids.expand(len(latents), -1))
        return bool((logits.float().sigmoid() >= self.success_threshold).all())


@dataclass(frozen=True)
class SubgoalRecord:
    """A subgoal that ended: at which step of the episode, and whether because it was achieved."""

    instruction: str
    step: int
    is_achieved: bool


class SubgoalPolicy:
    """Split the goal and work through its subgoals one after another.

    A subgoal ends when it is achieved, at once if it already is, or when its steps are spent;
    after the last one the policy stays with it. A changed goal is split anew.

    Args:
        policy: follows one instruction at a time.
        subgoals: splits the goal, seeing the present frame.
        is_achieved: tells when a subgoal is achieved, for example :class:`SeenAchieved`.
        max_steps: steps that a subgoal may take; ``None`` waits until it is achieved.
        goal: a fixed goal in words; by default the instruction given to :meth:`act`.

    Raises:
        SfvgenError: ``policy`` has a fixed goal, or ``max_steps`` is below 1.
    """

    def __init__(
        self,
        policy: PlanningPolicy,
        subgoals: Subgoals,
        is_achieved: IsAchieved,
        max_steps: int | None = None,
        goal: str | None = None,
    ) -> None:
        require(
            policy.goal is None,
            "the policy has a fixed goal and would not follow subgoals; give the goal to "
            "SubgoalPolicy instead",
        )
        if max_steps is not None:
            require_count("max_steps", max_steps)
        self.policy = policy
        self.subgoals = subgoals
        self.is_achieved = is_achieved
        self.max_steps = max_steps
        self.goal = goal
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode; ``seed`` makes its plans repeatable."""
        self.policy.reset(seed)
        self._begin()

    def _begin(self) -> None:
        self._episode = self.policy.imagination.num_episodes
        self.instructions: list[str] = []
        self.records: list[SubgoalRecord] = []
        self._split_goal: str | None = None
        self._index = self._begun_at = 0

    @property
    def is_done(self) -> bool:
        """Whether all subgoals of the present goal have ended."""
        return self._split_goal is not None and self._index == len(self.instructions)

    def act(self, observation: Any, instruction: str) -> np.ndarray:
        """The next action ``(A,)`` in env units.

        Raises:
            SfvgenError: the goal can't be split.
        """
        if self._episode != self.policy.imagination.num_episodes:
            # The env was reset, whether or not the policy was.
            self._begin()
        goal = instruction if self.goal is None else self.goal
        if goal != self._split_goal:
            self._split(goal)
        while not self.is_done and self._ends():
            self._index += 1
            self._begun_at = self.policy.imagination.num_steps
        present = min(self._index, len(self.instructions) - 1)
        return self.policy.act(observation, self.instructions[present])

    def _split(self, goal: str) -> None:
        imagination = self.policy.imagination
        self.instructions = self.subgoals(goal, imagination.past_frames[-1])
        require(len(self.instructions) > 0, f"the goal {goal!r} was split into no subgoals at all")
        self._split_goal = goal
        self._index, self._begun_at = 0, imagination.num_steps

    def _ends(self) -> bool:
        """Whether the present subgoal ends now; if so, it is recorded."""
        imagination, instruction = self.policy.imagination, self.instructions[self._index]
        is_achieved = self.is_achieved(imagination, instruction)
        taken = imagination.num_steps - self._begun_at
        if not is_achieved and (self.max_steps is None or taken < self.max_steps):
            return False
        self.records.append(SubgoalRecord(instruction, imagination.num_steps, is_achieved))
        return True
