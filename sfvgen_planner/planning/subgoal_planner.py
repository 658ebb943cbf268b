"""A language subgoal: a frame of an imagined video of the instruction is the goal of a search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning.mpc import MPCPlanner
from sfvgen_planner.planning.plan import Goal, Plan
from sfvgen_planner.planning.video_plan import VideoPlanner


class SubgoalPlanner:
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

    def reset(self) -> None:
        """Forget the previous plan."""
        self.video_planner.reset()
        self.search.reset()

    def plan(self, imagination: ImaginationWrapper, goal: Goal, seed: int | None = None) -> Plan:
        """Plan from the present moment; the cost is the distance to the imagined subgoal.

        Raises:
            SfvgenError: where the goal is not an instruction.
        """
        video = self.video_planner.plan(imagination, goal, seed)
        subgoal = video.frames[: self.search.config.horizon][-1]
        plan = self.search.plan(imagination, subgoal, seed, start=video.actions)
        return replace(plan, diagnostics=plan.diagnostics | video.diagnostics)

    def action(self, plan: Plan, step: int, frame: np.ndarray) -> np.ndarray:
        """The searched action."""
        return self.search.action(plan, step, frame)
