"""Objectives: costs of imagined futures. They see an imagination and nothing of the simulator."""

from sfvgen_planner.planning.objectives.action_costs import ActionChange, ActionMagnitude
from sfvgen_planner.planning.objectives.goal_image import GoalImage
from sfvgen_planner.planning.objectives.learned_distance import LearnedDistance
from sfvgen_planner.planning.objectives.objective import Objective
from sfvgen_planner.planning.objectives.outcome import LearnedSuccess, TaskReward
from sfvgen_planner.planning.objectives.weighted_sum import WeightedSum

OBJECTIVES = (
    ActionChange,
    ActionMagnitude,
    GoalImage,
    LearnedDistance,
    LearnedSuccess,
    TaskReward,
    WeightedSum,
)
"""All kinds there are."""

__all__ = [
    "OBJECTIVES",
    "ActionChange",
    "ActionMagnitude",
    "GoalImage",
    "LearnedDistance",
    "LearnedSuccess",
    "Objective",
    "TaskReward",
    "WeightedSum",
]
