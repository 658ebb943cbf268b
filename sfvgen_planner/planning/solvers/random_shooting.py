"""Random shooting: the baseline of every other solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import torch

from sfvgen_planner.errors import check_counts
from sfvgen_planner.planning.solvers.common import (
    BatchCostFunction,
    BatchSolver,
    Bounds,
    Solution,
    evaluate,
    lowest_costs,
    make_generators,
    solutions,
)


@dataclass(frozen=True)
class RandomShootingConfig:
    """Settings of :class:`RandomShooting`.

    Attributes:
        num_samples: candidates.
        max_batch_size: candidates in one call of the cost function, as of :class:`CEMConfig`.
    """

    num_samples: int = 64
    max_batch_size: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, "num_samples", "max_batch_size")


class RandomShooting(BatchSolver):
    """The best of uniform samples (standard normal where the space is unbounded): the baseline.

    The start is candidate 0.
    """

    def __init__(self, config: RandomShootingConfig | None = None) -> None:
        self.config = config or RandomShootingConfig()

    def solve_batch(
        self,
        cost_fn: BatchCostFunction,
        action_space: gym.spaces.Box,
        horizon: int,
        seeds: Sequence[int | None],
        initial_means: torch.Tensor | None = None,
    ) -> list[Solution]:
        """Minimise the cost of each environment; see :class:`BatchSolver`."""
        bounds = Bounds.of(action_space, horizon)
        start = bounds.start(len(seeds), initial_means)
        candidates = bounds.sample(self.config.num_samples, make_generators(seeds))
        candidates[:, 0] = start
        costs = evaluate(cost_fn, candidates, self.config.max_batch_size)
        lowest, best = costs.min(dim=1, keepdim=True)
        actions = candidates[torch.arange(len(seeds)), best[:, 0]]
        # A uniform distribution's.
        std = torch.where(bounds.bounded, bounds.scale / 3**0.5, 1.0).expand_as(actions)
        return solutions(actions, std, [lowest_costs(lowest)], candidates.shape[1])
