"""Objectives: costs of imagined futures. They see an imagination and nothing of the simulator."""

from sfvgen_planner.planning.objectives.action_costs import ActionChange, ActionMagnitude
from sfvgen_planner.planning.objectives.goal_image import GoalImage
from sfvgen_planner.planning.objectives.learned_distance import LearnedDistance
from sfvgen_planner.planning.objectives.objective import Objective
from sfvgen_planner.planning.objectives.outcome import LearnedSuccess, TaskReward
from sfvgen_planner.planning.objectives.weighted_sum import WeightedSum

__all__ = [
    "ActionChange",
    "ActionMagnitude",
    "GoalImage",
    "LearnedDistance",
    "LearnedSuccess",
    "Objective",
    "TaskReward",
    "WeightedSum",
]
