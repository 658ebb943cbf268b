"""Planners that search in, or read their actions off, imagined futures."""

from sfvgen_planner.planning.mpc import MPCConfig, MPCPlanner
from sfvgen_planner.planning.objectives import GoalImage, Objective
from sfvgen_planner.planning.plan import Goal, Plan, Planner
from sfvgen_planner.planning.policy import PlanningPolicy, PolicyConfig
from sfvgen_planner.planning.solvers import (
    CEM,
    CEMConfig,
    RandomShooting,
    RandomShootingConfig,
    Solution,
    Solver,
)
from sfvgen_planner.planning.video_plan import VideoPlanConfig, VideoPlanner

__all__ = [
    "CEM",
    "CEMConfig",
    "Goal",
    "GoalImage",
    "MPCConfig",
    "MPCPlanner",
    "Objective",
    "Plan",
    "Planner",
    "PlanningPolicy",
    "PolicyConfig",
    "RandomShooting",
    "RandomShootingConfig",
    "Solution",
    "Solver",
    "VideoPlanConfig",
    "VideoPlanner",
]
