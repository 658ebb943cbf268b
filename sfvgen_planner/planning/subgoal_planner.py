"""A language subgoal: a frame of an imagined video of the instruction is the goal of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning.mpc import MPCPlanner
from sfvgen_planner.planning.plan import BatchPlanner, Goal, Plan
from sfvgen_planner.planning.video_plan import VideoPlanner


class SubgoalPlanner(BatchPlanner):
    """Instruction -> imagined video -> its frame at the horizon as a goal image -> a search.

    MPC as the executor of the paper's planner: what the memory knows enters by the video, and the
    actions that inverse dynamics reads off it are where the search begins.

    Args:
        video_planner: imagines the video and reads its actions.
        search: takes a goal image. Where it looks further ahead than the video is long, the goal
            is the video's last frame.
    """

    def __init__(self, video_planner: VideoPlanner, search: MPCPlanner) -> None:
        self.video_planner = video_planner
        self.search = search

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
        """Plan for several; the cost is the distance to the imagined subgoal.

        Raises:
            SfvgenError: where a goal is not an instruction.
        """
        videos = self.video_planner.plan_batch(imaginations, goals, seeds)
        subgoals = [video.frames[: self.search.config.horizon][-1] for video in videos]
        starts = [video.actions for video in videos]
        plans = self.search.plan_batch(imaginations, subgoals, seeds, starts)
        return [
            replace(plan, diagnostics=plan.diagnostics | video.diagnostics)
            for plan, video in zip(plans, videos, strict=True)
        ]
