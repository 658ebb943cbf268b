"""Model-predictive path integral control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import torch

from sfvgen_planner.errors import check_counts, require
from sfvgen_planner.planning.solvers.common import (
    BatchCostFunction,
    BatchSolver,
    Bounds,
    Solution,
    check_spreads,
    evaluate,
    lowest_costs,
    make_generators,
    solutions,
    standard_normal,
)


@dataclass(frozen=True)
class MPPIConfig:
    """Settings of :class:`MPPI`.

    Spreads are in units of half the action range, or of the action itself where it is unbounded.

    Attributes:
        num_samples: candidates per iteration.
        num_iterations: updates of the mean.
        temperature: in units of the cost. Towards 0 the best candidate alone counts, towards
            infinity all count the same.
        initial_std: spread of the first iteration, and the largest one.
        min_std: floor of the spread, which follows that of the weighted candidates; equal to
            ``initial_std``, it keeps the spread as it is, as in the paper.
        max_batch_size: candidates in one call of the cost function, as of :class:`CEMConfig`.
    """

    num_samples: int = 64
    num_iterations: int = 4
    temperature: float = 0.1
    initial_std: float = 0.5
    min_std: float = 0.05
    max_batch_size: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, "num_samples", "num_iterations", "max_batch_size")
        require(
            0 < self.temperature < torch.inf,
            f"temperature must be positive and finite, got {self.temperature}",
        )
        check_spreads(self.min_std, self.initial_std)


class MPPI(BatchSolver):
    """Mean of the candidates, weighted by ``exp(-(cost - lowest cost) / temperature)``.

    Information-theoretic MPC (Williams et al., 2017, Algorithm 2). The paper's control cost is
    left to the cost function. Candidates are clamped to the action space, the mean is candidate 0,
    and a cost that is not finite weighs nothing.
    """

    def __init__(self, config: MPPIConfig | None = None) -> None:
        self.config = config or MPPIConfig()

    def solve_batch(
        self,
        cost_fn: BatchCostFunction,
        action_space: gym.spaces.Box,
        horizon: int,
        seeds: Sequence[int | None],
        initial_means: torch.Tensor | None = None,
    ) -> list[Solution]:
        """Minimise the cost of each environment; see :class:`BatchSolver`."""
        config = self.config
        bounds = Bounds.of(action_space, horizon)
        generators = make_generators(seeds)
        mean = bounds.start(len(seeds), initial_means)
        max_std = config.initial_std * bounds.scale.expand_as(mean)
        min_std = config.min_std * bounds.scale.expand_as(mean)
        std = max_std
        best_costs = []
        for _ in range(config.num_iterations):
            noise = standard_normal((config.num_samples, *mean.shape[1:]), generators)
            candidates = bounds.around(mean, std, noise)
            costs = evaluate(cost_fn, candidates, config.max_batch_size)
            lowest = costs.amin(dim=1, keepdim=True)
            best_costs.append(lowest_costs(lowest))
            weights = torch.softmax((lowest - costs) / config.temperature, dim=1)[:, None].to(mean)
            flat = candidates.flatten(2)
            mean = bounds.clamp((weights @ flat).view_as(mean))
            variance = weights @ (flat - mean.flatten(1)[:, None]).square()
            std = variance.view_as(mean).sqrt().clamp(min_std, max_std)
        return solutions(mean, std, best_costs, config.num_samples * config.num_iterations)
