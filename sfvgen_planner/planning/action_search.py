"""What all MPC planners share: a search over held actions that goes on where the last one ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast
from weakref import WeakKeyDictionary

import gymnasium as gym
import numpy as np
import torch

from sfvgen_planner.errors import check_counts, require
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning.solvers import CEM, Solution, Solver
from sfvgen_planner.planning.solvers.common import BatchCostFunction, BatchSolver


@dataclass(frozen=True)
class SearchConfig:
    """How far to look ahead, and how finely.

    Attributes:
        horizon: steps to look ahead; a multiple of ``action_block``.
        action_block: steps that one searched action is held for. Longer blocks make the search
            space smaller.
    """

    horizon: int = 8
    action_block: int = 2

    def __post_init__(self) -> None:
        check_counts(self, "horizon", "action_block")
        require(
            self.horizon % self.action_block == 0,
            f"horizon={self.horizon} must be a multiple of action_block={self.action_block}",
        )


class ActionSearch:
    """Minimise a cost over blocks of held actions.

    Args:
        solver: :class:`~sfvgen_planner.planning.CEM` by default.
        config: horizon and blocks.
    """

    def __init__(self, solver: Solver | None, config: SearchConfig) -> None:
        self.solver = solver or CEM()
        self.config = config
        self._previous: WeakKeyDictionary[ImaginationWrapper, tuple[int, int, np.ndarray]]
        self._previous = WeakKeyDictionary()

    def reset(self, imagination: ImaginationWrapper | None = None) -> None:
        """Forget the last solution of one imagination, or of all."""
        if imagination is None:
            self._previous.clear()
        else:
            self._previous.pop(imagination, None)

    def solve(
        self,
        cost_fn: BatchCostFunction,
        imaginations: Sequence[ImaginationWrapper],
        seeds: Sequence[int | None],
        starts: Sequence[np.ndarray | None] | None = None,
    ) -> list[Solution]:
        """Search from given actions, or else from the last solution, shifted by the steps since.

        Args:
            cost_fn: costs ``(E, N)`` of candidates ``(E, N, horizon, A)``, N for each imagination.
            imaginations: E of them, whose actions are searched.
            seeds: of the solver, one for each.
            starts: actions ``(T, A)`` for each; what is beyond the horizon does not count.

        Returns:
            The solver's, with one action ``(horizon, A)`` per step.

        Raises:
            SfvgenError: there are several imaginations and the solver takes one problem at a time.
        """
        block = self.config.action_block
        space = cast(gym.spaces.Box, imaginations[0].action_space)
        given = [None] * len(imaginations) if starts is None else starts
        means = [
            self._rest_of_last(imagination) if start is None else start
            for imagination, start in zip(imaginations, given, strict=True)
        ]
        initial_means = None
        if any(mean is not None for mean in means):
            initial_means = torch.stack([self._blocks(mean, space) for mean in means])
        found = self._solve_blocks(
            lambda blocks: cost_fn(blocks.repeat_interleave(block, dim=2)),
            space,
            seeds,
            initial_means,
        )
        solutions = []
        for imagination, solution in zip(imaginations, found, strict=True):
            actions = solution.actions.repeat_interleave(block, dim=0)
            at = (imagination.num_episodes, imagination.num_steps)
            self._previous[imagination] = (*at, actions.numpy())
            solutions.append(replace(solution, actions=actions))
        return solutions

    def _solve_blocks(
        self,
        cost_fn: BatchCostFunction,
        space: gym.spaces.Box,
        seeds: Sequence[int | None],
        initial_means: torch.Tensor | None,
    ) -> list[Solution]:
        num_blocks = self.config.horizon // self.config.action_block
        if len(seeds) > 1:
            require(
                isinstance(self.solver, BatchSolver),
                f"{type(self.solver).__name__} solves for one environment at a time; to plan for "
                "several together give a BatchSolver",
            )
            solver = cast(BatchSolver, self.solver)
            return solver.solve_batch(cost_fn, space, num_blocks, seeds, initial_means)
        solution = self.solver.solve(
            lambda blocks: cost_fn(blocks[None])[0],
            space,
            num_blocks,
            seed=seeds[0],
            initial_mean=None if initial_means is None else initial_means[0],
        )
        return [solution]

    def _rest_of_last(self, imagination: ImaginationWrapper) -> np.ndarray | None:
        """What is left of the last solution."""
        if imagination not in self._previous:
            return None
        episode, planned_at, actions = self._previous[imagination]
        taken = imagination.num_steps - planned_at
        is_present = episode == imagination.num_episodes and 0 <= taken < len(actions)
        return actions[taken:] if is_present else None

    def _blocks(self, actions: np.ndarray | None, space: gym.spaces.Box) -> torch.Tensor:
        """Actions ``(T, A)``, if any, then rest, as the means of their blocks."""
        horizon, block = self.config.horizon, self.config.action_block
        middle = (space.low + space.high) / 2
        actions = np.empty((0, len(middle)), np.float32) if actions is None else actions
        require(
            np.ndim(actions) == 2 and np.shape(actions)[1] == len(middle),
            f"start must be actions of the shape (T, {len(middle)}), got {np.shape(actions)}",
        )
        rest = np.broadcast_to(middle, (max(0, horizon - len(actions)), len(middle)))
        filled = np.concatenate([actions[:horizon], rest])
        blocks = filled.reshape(-1, block, len(middle)).mean(axis=1)
        return torch.as_tensor(blocks, dtype=torch.float32)
