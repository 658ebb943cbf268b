"""What all MPC planners share: a search over held actions that goes on where the last one ended."""

from __future__ import annotations

from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np
import torch

from sfvgen_planner.errors import require
from sfvgen_planner.planning.solvers import CEM, Solution, Solver
from sfvgen_planner.planning.solvers.common import CostFunction


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
        require(
            self.action_block >= 1 and self.horizon >= 1 and self.horizon % self.action_block == 0,
            f"horizon={self.horizon} must be a positive multiple of "
            f"action_block={self.action_block}",
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
        self._previous: tuple[int, np.ndarray] | None = None

    def reset(self) -> None:
        """Forget the last solution."""
        self._previous = None

    def solve(
        self,
        cost_fn: CostFunction,
        action_space: gym.spaces.Box,
        now: int,
        seed: int | None,
        start: np.ndarray | None = None,
    ) -> Solution:
        """Search from given actions, or else from the last solution, shifted by the steps since.

        Args:
            cost_fn: costs ``(N,)`` of candidates ``(N, horizon, A)``.
            action_space: of the actions.
            now: number of the present step in its episode.
            seed: of the solver.
            start: actions ``(T, A)``; what is beyond the horizon does not count.

        Returns:
            The solver's, with one action ``(horizon, A)`` per step.
        """
        block = self.config.action_block
        start = self._rest_of_last(now) if start is None else start
        solution = self.solver.solve(
            lambda blocks: cost_fn(blocks.repeat_interleave(block, dim=1)),
            action_space,
            self.config.horizon // block,
            seed=seed,
            initial_mean=None if start is None else self._blocks(start, action_space),
        )
        actions = solution.actions.repeat_interleave(block, dim=0)
        self._previous = now, actions.numpy()
        return replace(solution, actions=actions)

    def _rest_of_last(self, now: int) -> np.ndarray | None:
        """What is left of the last solution."""
        if self._previous is None:
            return None
        planned_at, actions = self._previous
        taken = now - planned_at
        return actions[taken:] if 0 <= taken < len(actions) else None

    def _blocks(self, actions: np.ndarray, space: gym.spaces.Box) -> torch.Tensor:
        """Actions ``(T, A)``, then rest, as the means of their blocks."""
        horizon, block = self.config.horizon, self.config.action_block
        middle = (space.low + space.high) / 2
        rest = np.broadcast_to(middle, (max(0, horizon - len(actions)), len(middle)))
        filled = np.concatenate([actions[:horizon], rest])
        blocks = filled.reshape(-1, block, len(middle)).mean(axis=1)
        return torch.as_tensor(blocks, dtype=torch.float32)
