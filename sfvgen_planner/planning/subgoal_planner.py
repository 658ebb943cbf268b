"""A language subgoal: a frame of an imagined video of the instruction is the goal of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning.mpc import MPCPlanner
from sfvgen_planner.planning.objectives import Objective
from sfvgen_planner.planning.plan import BatchPlanner, Goal, Plan
from sfvgen_planner.planning.video_plan import VideoPlanner

SubgoalObjective = Callable[[np.ndarray, str, np.ndarray], Objective]
"""Makes an objective from the subgoal's image ``(H, W, 3)`` uint8, the instruction, and the video's
actions ``(horizon, A)`` in env units, which rest where the video is shorter."""


class SubgoalPlanner(BatchPlanner):
    """Instruction -> imagined video -> its frame at the horizon as a goal image -> a search.

    MPC as the executor of the paper's planner: what the memory knows enters by the video, and the
    actions that inverse dynamics reads off it are where the search begins.

    Args:
        video_planner: imagines the video and reads its actions.
        search: takes a goal image. Where it looks further ahead than the video is long, the goal
            is the video's last frame.
        objective: of the search; by default the search's own, of the image alone.

    Example:
        >>> video_planner = VideoPlanner.from_pretrained("tabletop")
        >>> head = video_planner.outcome_head
        >>> def objective(image, instruction, video_actions):
        ...     return WeightedSum(
        ...         (1.0, GoalImage(image)),
        ...         (0.5, LearnedSuccess(head, instruction)),
        ...         (2.0, ActionMagnitude(reference=video_actions)),
        ...     )
        >>> planner = SubgoalPlanner(video_planner, MPCPlanner(), objective)
    """

    def __init__(
        self,
        video_planner: VideoPlanner,
        search: MPCPlanner,
        objective: SubgoalObjective | None = None,
    ) -> None:
        self.video_planner = video_planner
        self.search = search
        self.objective = objective

    def reset(self, imagination: ImaginationWrapper | None = None) -> None:
        """Forget the previous plan of one imagination, or of all."""
        self.video_planner.reset(imagination)
        self.search.reset(imagination)

    def plan_batch(
        self,
        imaginations: Sequence[ImaginationWrapper],
        goals: Sequence[Goal],
        seeds: Sequence[int | None],
    ) -> list[Plan]:
        """Plan for several; the cost is that of the objective.

        Raises:
            SfvgenError: where a goal is not an instruction.
        """
        videos = self.video_planner.plan_batch(imaginations, goals, seeds)
        objectives = [
            self._objective(imaginations[0], cast(str, goal), video)
            for goal, video in zip(goals, videos, strict=True)
        ]
        starts = [video.actions for video in videos]
        plans = self.search.search_batch(imaginations, objectives, seeds, starts)
        return [
            replace(plan, diagnostics=plan.diagnostics | video.diagnostics)
            for plan, video in zip(plans, videos, strict=True)
        ]

    def _objective(
        self, imagination: ImaginationWrapper, instruction: str, video: Plan
    ) -> Objective:
        horizon = self.search.config.horizon
        image = video.frames[:horizon][-1]
        if self.objective is None:
            return self.search.objective(image)
        config = imagination.world_model.config
        rest = np.add(config.action_low, config.action_high, dtype=np.float32) / 2
        actions = np.tile(rest, (horizon, 1))
        actions[: len(video)] = video.actions[:horizon]
        return self.objective(image, instruction, actions)
