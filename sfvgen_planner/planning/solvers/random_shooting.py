"""Random shooting: the baseline of every other solver."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import torch

from sfvgen_planner.planning.solvers.common import (
    Bounds,
    CostFunction,
    Solution,
    check_counts,
    make_generator,
    ranked,
)


@dataclass(frozen=True)
class RandomShootingConfig:
    """Settings of :class:`RandomShooting`: ``num_samples`` candidates."""

    num_samples: int = 64

    def __post_init__(self) -> None:
        check_counts(self, "num_samples")


class RandomShooting:
    """The best of uniform samples (standard normal where the space is unbounded): the baseline."""

    def __init__(self, config: RandomShootingConfig | None = None) -> None:
        self.config = config or RandomShootingConfig()

    def solve(
        self,
        cost_fn: CostFunction,
        action_space: gym.spaces.Box,
        horizon: int,
        seed: int | None = None,
        initial_mean: torch.Tensor | None = None,
    ) -> Solution:
        """Minimise ``cost_fn``; a given ``initial_mean`` is candidate 0. See :class:`Solver`."""
        bounds = Bounds(action_space)
        candidates = bounds.sample(self.config.num_samples, horizon, make_generator(seed))
        if initial_mean is not None:
            candidates[0] = bounds.start(horizon, initial_mean)
        costs = ranked(cost_fn(candidates), len(candidates))
        best = int(costs.argmin())
        std = candidates.std(0, correction=0)
        return Solution(candidates[best], std, (float(costs[best]),), len(candidates))
