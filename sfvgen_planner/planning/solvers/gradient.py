"""Gradient descent on the actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import torch

from sfvgen_planner.errors import SfvgenError, check_counts, require
from sfvgen_planner.planning.solvers.common import (
    BatchCostFunction,
    BatchSolver,
    Bounds,
    Solution,
    check_costs,
    check_finite,
    check_spreads,
    make_generators,
    pieces,
    ranked,
    solutions,
    spread,
    standard_normal,
)


@dataclass(frozen=True)
class GradientConfig:
    """Settings of :class:`Gradient`.

    Lengths are in units of half the action range, or of the action itself where it is unbounded.

    Attributes:
        num_samples: starts, optimised side by side.
        num_iterations: evaluations of every start, with a step between each and the next.
        learning_rate: about the length of the first steps.
        initial_std: spread of the starts around the first one; more than 0.
        max_batch_size: candidates in one call of the cost function, those of all environments
            together, but at least one of each, which bounds the memory that the gradients need;
            all by default.
    """

    num_samples: int = 8
    num_iterations: int = 32
    learning_rate: float = 0.1
    initial_std: float = 0.5
    max_batch_size: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, "num_samples", "num_iterations", "max_batch_size")
        require(
            0 < self.learning_rate < torch.inf,
            f"learning_rate must be positive and finite, got {self.learning_rate}",
        )
        check_spreads(0, self.initial_std)


class Gradient(BatchSolver):
    """Projected Adam (Kingma and Ba, 2015) on several action sequences; the best one seen counts.

    Each step is followed by clamping to the action space, so an optimum on its border is reached.
    A start whose cost is not finite ranks last, and one whose gradient is not finite gets none:
    where the steps lead to where no cost is finite, what was found before counts.
    The cost function must be differentiable with respect to the candidates.
    """

    def __init__(self, config: GradientConfig | None = None) -> None:
        self.config = config or GradientConfig()

    def solve_batch(
        self,
        cost_fn: BatchCostFunction,
        action_space: gym.spaces.Box,
        horizon: int,
        seeds: Sequence[int | None],
        initial_means: torch.Tensor | None = None,
    ) -> list[Solution]:
        """Minimise the cost of each environment; see :class:`BatchSolver`.

        Raises:
            SfvgenError: also where the costs carry no gradient.
        """
        config = self.config
        bounds = Bounds.of(action_space, horizon)
        start = bounds.start(len(seeds), initial_means)
        noise = standard_normal((config.num_samples, *start.shape[1:]), make_generators(seeds))
        candidates = bounds.around(start, config.initial_std * bounds.scale, noise)
        # In half ranges, so that one learning rate suits all actions.
        offsets = (candidates - bounds.middle) / bounds.scale
        optimiser = torch.optim.Adam([offsets], lr=config.learning_rate, fused=True)
        rows = torch.arange(len(seeds))
        best, best_cost = start, torch.full((len(seeds),), torch.inf, dtype=torch.float64)
        best_costs = []
        for _ in range(config.num_iterations):
            costs, gradients = self._gradients(cost_fn, candidates)
            lowest, index = costs.min(dim=1)
            best_costs.append(lowest.tolist())
            is_better = (lowest < best_cost)[:, None, None]
            best = torch.where(is_better, candidates[rows, index], best)
            best_cost = best_cost.minimum(lowest)
            offsets.grad = gradients * bounds.scale
            optimiser.step()
            candidates = bounds.clamp(bounds.middle + bounds.scale * offsets)
            offsets.copy_((candidates - bounds.middle) / bounds.scale)
        check_finite(best_cost.tolist())
        num_evaluations = config.num_samples * config.num_iterations
        return solutions(best, spread(candidates), best_costs, num_evaluations)

    def _gradients(
        self, cost_fn: BatchCostFunction, candidates: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Costs ``(E, N)`` and their gradients ``(E, N, T, A)``."""
        costs, gradients = [], []
        for batch in pieces(candidates, self.config.max_batch_size):
            with torch.enable_grad():
                inputs = batch.clone().requires_grad_()
                batch_costs = torch.as_tensor(cost_fn(inputs))
                check_costs(batch_costs, inputs.shape[:2])
                gradient = None
                if batch_costs.requires_grad:
                    (gradient,) = torch.autograd.grad(batch_costs.sum(), inputs, allow_unused=True)
            if gradient is None:
                raise SfvgenError(
                    "the gradient solver needs a cost function that is differentiable with respect "
                    "to the actions, but these costs carry no gradient; CEM, ICEM and MPPI need "
                    "none"
                )
            costs.append(batch_costs.detach())
            gradients.append(gradient.nan_to_num(0, 0, 0))
        return ranked(torch.cat(costs, dim=1)), torch.cat(gradients, dim=1)
