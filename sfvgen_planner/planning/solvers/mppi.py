"""Model-predictive path integral control."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import torch

from sfvgen_planner.errors import require
from sfvgen_planner.planning.solvers.common import (
    Bounds,
    CostFunction,
    Solution,
    check_counts,
    check_spreads,
    make_generator,
    ranked,
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
    """

    num_samples: int = 64
    num_iterations: int = 4
    temperature: float = 0.1
    initial_std: float = 0.5
    min_std: float = 0.05

    def __post_init__(self) -> None:
        check_counts(self, "num_samples", "num_iterations")
        require(
            0 < self.temperature < torch.inf,
            f"temperature must be positive and finite, got {self.temperature}",
        )
        check_spreads(self.min_std, self.initial_std)


class MPPI:
    """Mean of the candidates, weighted by ``exp(-(cost - lowest cost) / temperature)``.

    Information-theoretic MPC (Williams et al., 2017, Algorithm 2). The paper's control cost is
    left to the cost function. Candidates are clamped to the action space, the mean is candidate 0,
    and a cost that is not finite weighs nothing.
    """

    def __init__(self, config: MPPIConfig | None = None) -> None:
        self.config = config or MPPIConfig()

    def solve(
        self,
        cost_fn: CostFunction,
        action_space: gym.spaces.Box,
        horizon: int,
        seed: int | None = None,
        initial_mean: torch.Tensor | None = None,
    ) -> Solution:
        """Minimise ``cost_fn``; see :class:`Solver`."""
        config = self.config
        bounds = Bounds(action_space)
        generator = make_generator(seed)
        mean = bounds.start(horizon, initial_mean)
        max_std = config.initial_std * bounds.scale.expand_as(mean)
        min_std = config.min_std * bounds.scale.expand_as(mean)
        std = max_std
        best_costs = []
        for _ in range(config.num_iterations):
            noise = torch.randn(config.num_samples, *mean.shape, generator=generator)
            candidates = bounds.around(mean, std, noise)
            costs = ranked(cost_fn(candidates), len(candidates))
            lowest = costs.min()
            weights = torch.softmax((lowest - costs) / config.temperature, dim=0)
            mean = bounds.clamp(torch.tensordot(weights, candidates, dims=1))
            variance = torch.tensordot(weights, (candidates - mean).square(), dims=1)
            std = variance.sqrt().clamp(min_std, max_std)
            best_costs.append(float(lowest))
        num_evaluations = config.num_samples * config.num_iterations
        return Solution(mean, std, tuple(best_costs), num_evaluations)
