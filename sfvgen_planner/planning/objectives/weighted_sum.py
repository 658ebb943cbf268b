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
        SfvgenError: where there are no terms, one is no pair, or a weight is not finite; or, when
            called, where a term gives no cost for each future, or none that a solver which
            descends gradients could follow.

    Example:
        >>> from sfvgen_planner.planning import ActionChange, GoalImage, MPCPlanner, WeightedSum
        >>> planner = MPCPlanner(
        ...     objective=lambda goal: WeightedSum((1.0, GoalImage(goal)), (0.1, ActionChange()))
        ... )
    """

    def __init__(self, *terms: tuple[float, Objective]) -> None:
        require(len(terms) > 0, "WeightedSum: give at least one pair of a weight and an objective")
        for term in terms:
            require(
                isinstance(term, tuple) and len(term) == 2 and callable(term[1]),
                f"WeightedSum: each term is a pair of a weight and an objective, got {term!r}",
            )
            weight, objective = term
            require(
                math.isfinite(weight),
                f"WeightedSum: the weight of {type(objective).__name__} must be finite, "
                f"got {weight}",
            )
        self.terms = terms

    def __call__(self, imagination: Imagination) -> torch.Tensor:
        """Cost of each future."""
        costs = [weight * self._cost(term, imagination) for weight, term in self.terms]
        return torch.stack(costs).sum(dim=0)

    @staticmethod
    def _cost(objective: Objective, imagination: Imagination) -> torch.Tensor:
        latents, name = imagination.latents, type(objective).__name__
        cost = torch.as_tensor(objective(imagination), device=latents.device)
        require(
            cost.shape == (len(latents),),
            f"WeightedSum: {name} must give a cost for each of {len(latents)} futures, got the "
            f"shape {tuple(cost.shape)}",
        )
        require(
            cost.requires_grad or not latents.requires_grad,
            f"WeightedSum: the costs of {name} carry no gradient, so that descending gradients "
            "would pass it over; leave it out, or search with another solver",
        )
        return cost
