"""Several objectives as one."""

from __future__ import annotations

import math

import torch

from sfvgen_planner.errors import require
from sfvgen_planner.imagination import Imagination
from sfvgen_planner.planning.objectives.objective import Objective


class WeightedSum:
    """The weighted sum of other objectives' costs.

    Args:
        *terms: each a weight and an objective. A negative weight rewards what its objective costs.

    Raises:
        SfvgenError: where there are no terms, or a weight is not finite.

    Example:
        >>> from sfvgen_planner.planning import ActionChange, GoalImage, MPCPlanner, WeightedSum
        >>> planner = MPCPlanner(
        ...     objective=lambda goal: WeightedSum((1.0, GoalImage(goal)), (0.1, ActionChange()))
        ... )
    """

    def __init__(self, *terms: tuple[float, Objective]) -> None:
        require(len(terms) > 0, "WeightedSum: give at least one pair of a weight and an objective")
        for weight, objective in terms:
            require(
                math.isfinite(weight),
                f"WeightedSum: the weight of {type(objective).__name__} must be finite, "
                f"got {weight}",
            )
        self.terms = terms

    def __call__(self, imagination: Imagination) -> torch.Tensor:
        """Cost of each future."""
        device = imagination.latents.device
        costs = [weight * objective(imagination).to(device) for weight, objective in self.terms]
        return torch.stack(costs).sum(dim=0)
