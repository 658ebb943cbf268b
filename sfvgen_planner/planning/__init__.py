"""Planners that search in, or read their actions off, imagined futures."""

from sfvgen_planner.planning.action_search import SearchConfig
from sfvgen_planner.planning.chat_endpoint import ChatEndpoint
from sfvgen_planner.planning.mpc import MPCConfig, MPCPlanner
from sfvgen_planner.planning.objectives import (
    ActionChange,
    ActionMagnitude,
    GoalImage,
    LearnedDistance,
    LearnedSuccess,
    Objective,
    TaskReward,
    WeightedSum,
)
from sfvgen_planner.planning.plan import BatchPlanner, Goal, Plan, Planner
from sfvgen_planner.planning.policy import PlanningPolicy, PolicyConfig, act_batch
from sfvgen_planner.planning.simulator_planner import SimulatorPlanner
from sfvgen_planner.planning.solvers import (
    CEM,
    ICEM,
    MPPI,
    BatchSolver,
    CEMConfig,
    Gradient,
    GradientConfig,
    ICEMConfig,
    MPPIConfig,
    RandomShooting,
    RandomShootingConfig,
    Solution,
    Solver,
)
from sfvgen_planner.planning.subgoal_planner import SubgoalPlanner
from sfvgen_planner.planning.subgoal_policy import SeenAchieved, SubgoalPolicy, SubgoalRecord
from sfvgen_planner.planning.subgoals import (
    LanguageModelConfig,
    LanguageModelSubgoals,
    ListedSubgoals,
    Subgoals,
)
from sfvgen_planner.planning.video_plan import VideoPlanConfig, VideoPlanner

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "ActionChange",
    "ActionMagnitude",
    "BatchPlanner",
    "BatchSolver",
    "CEMConfig",
    "ChatEndpoint",
    "Goal",
    "GoalImage",
    "Gradient",
    "GradientConfig",
    "ICEMConfig",
    "LanguageModelConfig",
    "LanguageModelSubgoals",
    "LearnedDistance",
    "LearnedSuccess",
    "ListedSubgoals",
    "MPCConfig",
    "MPCPlanner",
    "MPPIConfig",
    "Objective",
    "Plan",
    "Planner",
    "PlanningPolicy",
    "PolicyConfig",
    "RandomShooting",
    "RandomShootingConfig",
    "SearchConfig",
    "SeenAchieved",
    "SimulatorPlanner",
    "Solution",
    "Solver",
    "SubgoalPlanner",
    "SubgoalPolicy",
    "SubgoalRecord",
    "Subgoals",
    "TaskReward",
    "VideoPlanConfig",
    "VideoPlanner",
    "WeightedSum",
    "act_batch",
]
