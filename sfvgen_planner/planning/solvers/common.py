"""What the solvers share: their protocol, the action bounds, sampling and ranking."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch

from sfvgen_planner.errors import SfvgenError, require, require_count
from sfvgen_planner.generators import seeded_generator

CostFunction = Callable[[torch.Tensor], torch.Tensor]
"""Costs ``(N,)`` of candidates ``(N, T, A)`` in env units; within one ``solve`` it must give the
same candidate the same cost."""

BatchCostFunction = Callable[[torch.Tensor], torch.Tensor]
"""Costs ``(E, N)`` of candidates ``(E, N, T, A)``: N for each of E environments."""


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        actions: ``(T, A)`` float32 within the action space.
        std: spread ``(T, A)`` that the search ended with, in env units.
        best_costs: lowest cost among the candidates of each iteration; infinite where no cost was
            finite, which the gradient solver alone lets pass.
        num_evaluations: candidates whose cost was computed.
    """

    actions: torch.Tensor
    std: torch.Tensor
    best_costs: tuple[float, ...]
    num_evaluations: int

    @property
    def diagnostics(self) -> dict[str, Any]:
        """How the search went, JSON-able."""
        return {
            "best_costs": list(self.best_costs),
            "num_evaluations": self.num_evaluations,
            "mean_std": float(self.std.mean()),
        }


class Solver(Protocol):
    """Anything that minimises a cost over sequences of actions.

    Solvers keep nothing between calls. A planner starts one warm with the rest of its last plan.
    """

    def solve(
        self,
        cost_fn: CostFunction,
        action_space: gym.spaces.Box,
        horizon: int,
        seed: int | None = None,
        initial_mean: torch.Tensor | None = None,
    ) -> Solution:
        """Minimise ``cost_fn`` over ``(horizon, A)`` sequences, starting at ``initial_mean``.

        The start is the middle of the action space by default. It is always a candidate.

        Raises:
            SfvgenError: where the action space, the horizon, the start or the shape of the costs
                does not fit, or no candidate of an iteration has a finite cost.
        """


class BatchSolver(ABC):
    """A solver of one problem, or of several environments' problems side by side."""

    @abstractmethod
    def solve_batch(
        self,
        cost_fn: BatchCostFunction,
        action_space: gym.spaces.Box,
        horizon: int,
        seeds: Sequence[int | None],
        initial_means: torch.Tensor | None = None,
    ) -> list[Solution]:
        """Minimise the cost of each of E environments, in calls for all of them.

        Each solution is the one that ``solve`` finds for that environment's cost, seed and start.

        Args:
            cost_fn: of all environments at once.
            action_space: of one environment.
            horizon: actions in a sequence, T.
            seeds: one for each environment.
            initial_means: ``(E, T, A)``, where to start; see :class:`Solver`.

        Raises:
            SfvgenError: as ``solve``.
        """

    def solve(
        self,
        cost_fn: CostFunction,
        action_space: gym.spaces.Box,
        horizon: int,
        seed: int | None = None,
        initial_mean: torch.Tensor | None = None,
    ) -> Solution:
        """Minimise ``cost_fn``; see :class:`Solver`."""

        def batch_cost_fn(candidates: torch.Tensor) -> torch.Tensor:
            costs = torch.as_tensor(cost_fn(candidates[0]))
            check_costs(costs, candidates.shape[1:2])
            return costs[None]

        starts = None if initial_mean is None else initial_mean[None]
        (solution,) = self.solve_batch(batch_cost_fn, action_space, horizon, [seed], starts)
        return solution


class Bounds:
    """The box that sequences live in: its limits, its middle and its half range, ``(T, A)``.

    Where a side is open or the box has no width, the half range counts as 1. Numbers for a whole
    sequence are several times faster to apply to many than those of one action.
    """

    def __init__(self, low: torch.Tensor, high: torch.Tensor) -> None:
        self.low, self.high = low, high
        self.bounded = torch.isfinite(high - low) & (high > low)
        self.scale = torch.where(self.bounded, (high - low) / 2, 1.0)
        self.middle = self.clamp(torch.where(self.bounded, (high + low) / 2, 0.0))

    @classmethod
    def of(cls, space: gym.spaces.Box, horizon: int) -> Bounds:
        """Those of ``horizon`` actions; the same object for the same numbers, not to be changed."""
        require_count("horizon", horizon)
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise SfvgenError(f"Solvers need a Box of the shape (A,), got {space}")
        return _bounds(tuple(space.low.tolist()), tuple(space.high.tolist()), horizon)

    def clamp(self, actions: torch.Tensor) -> torch.Tensor:
        """The nearest sequences ``(..., T, A)`` within the box."""
        return actions.clamp(self.low, self.high)

    def start(self, num_envs: int, initial_means: torch.Tensor | None) -> torch.Tensor:
        """The sequences ``(E, T, A)`` that searches start from."""
        require(num_envs >= 1, "at least one environment is needed, got no seeds")
        shape = (num_envs, *self.low.shape)
        if initial_means is None:
            return self.middle.expand(shape).clone()
        initial_means = torch.as_tensor(initial_means)
        require(
            tuple(initial_means.shape) == shape,
            f"initial_mean must have the shape {shape[1:]} for each of {num_envs} environments, "
            f"got {tuple(initial_means.shape[1:])} for {len(initial_means)}",
        )
        require(
            bool(initial_means.isfinite().all()), "initial_mean must be finite, but has NaN or inf"
        )
        return self.clamp(initial_means.to(torch.float32))

    def around(self, mean: torch.Tensor, std: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Candidates around the means, from unit noise; candidate 0 is the mean.

        Args:
            mean: ``(E, T, A)``.
            std: broadcasts with it.
            noise: ``(E, N, T, A)``.
        """
        candidates = noise.new_empty(noise.shape)
        torch.addcmul(mean[:, None], noise, std.expand_as(mean)[:, None], out=candidates)
        candidates.clamp_(self.low, self.high)
        candidates[:, 0] = mean
        return candidates

    def sample(self, count: int, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Uniform candidates ``(E, N, T, A)``; standard normal ones where the box is open."""
        shape = (count, *self.low.shape)
        noise = torch.empty(len(generators), *shape, dtype=torch.float32)
        for own, generator in zip(noise, generators, strict=True):
            own.uniform_(-1, 1, generator=generator)
        if not self.bounded.all():
            noise = torch.where(self.bounded, noise, standard_normal(shape, generators))
        return self.clamp(noise.mul_(self.scale).add_(self.middle))


@functools.lru_cache(maxsize=64)
def _bounds(lowest: tuple[float, ...], highest: tuple[float, ...], horizon: int) -> Bounds:
    """The box of these limits as float32, rounded to its inside."""
    low, high = np.array(lowest, np.float32), np.array(highest, np.float32)
    low = np.where(low < lowest, np.nextafter(low, np.float32(np.inf)), low)
    high = np.where(high > highest, np.nextafter(high, np.float32(-np.inf)), high)
    return Bounds(*(torch.from_numpy(limit).repeat(horizon, 1) for limit in (low, high)))


def pieces(candidates: torch.Tensor, max_batch_size: int | None) -> tuple[torch.Tensor, ...]:
    """Candidates ``(E, N, T, A)`` in as many of each environment as make a batch, at least one."""
    num_envs, num_samples = candidates.shape[:2]
    return candidates.split(max(1, (max_batch_size or num_envs * num_samples) // num_envs), dim=1)


def evaluate(
    cost_fn: BatchCostFunction, candidates: torch.Tensor, max_batch_size: int | None
) -> torch.Tensor:
    """Costs ``(E, N)`` of candidates ``(E, N, T, A)``, ranked; see :func:`ranked`."""
    costs = []
    for piece in pieces(candidates, max_batch_size):
        costs.append(torch.as_tensor(cost_fn(piece)))
        check_costs(costs[-1], piece.shape[:2])
    return ranked(costs[0] if len(costs) == 1 else torch.cat(costs, dim=1))


def ranked(costs: torch.Tensor) -> torch.Tensor:
    """Costs ``(E, N)`` on the CPU, float64, with whatever is not finite ranking last."""
    # Double precision, because costs may differ by little of their size.
    costs = costs.detach().to("cpu", torch.float64)
    return costs.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf)


def lowest_costs(costs: torch.Tensor) -> list[float]:
    """Each environment's lowest cost, of ranked ones ``(E, N)`` with the lowest first.

    Raises:
        SfvgenError: where that is not finite.
    """
    lowest: list[float] = costs[:, 0].tolist()
    check_finite(lowest)
    return lowest


def check_finite(lowest: list[float]) -> None:
    """Refuse to go on where the lowest cost of an environment is none."""
    require(all(map(math.isfinite, lowest)), "no candidate has a finite cost; check the objective")


def check_costs(costs: torch.Tensor, shape: torch.Size) -> None:
    """Refuse anything but one cost for each candidate."""
    require(
        costs.shape == shape,
        "the cost function must return one cost for each of the "
        f"{' x '.join(map(str, shape))} candidates, got the shape {tuple(costs.shape)}",
    )


def spread(candidates: torch.Tensor) -> torch.Tensor:
    """Standard deviation ``(E, T, A)`` of candidates ``(E, N, T, A)``."""
    # An order of magnitude faster than torch.std.
    deviation = candidates - candidates.mean(dim=1, keepdim=True)
    return deviation.square().mean(dim=1).sqrt()


def solutions(
    actions: torch.Tensor,
    stds: torch.Tensor,
    best_costs: Sequence[Sequence[float]],
    num_evaluations: int,
) -> list[Solution]:
    """Each environment's own solution.

    Args:
        actions: ``(E, T, A)``.
        stds: ``(E, T, A)``.
        best_costs: of each iteration, E.
        num_evaluations: of each environment.
    """
    histories = zip(*best_costs, strict=True)
    return [
        Solution(own, std, history, num_evaluations)
        for own, std, history in zip(actions, stds, histories, strict=True)
    ]


def make_generators(seeds: Sequence[int | None]) -> list[torch.Generator]:
    """One generator on the CPU for each environment; without a seed, every one differs."""
    return [seeded_generator(seed) for seed in seeds]


def standard_normal(shape: Sequence[int], generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Noise ``(E, *shape)``, each environment's from its own generator."""
    noise = torch.empty(len(generators), *shape, dtype=torch.float32)
    for own, generator in zip(noise, generators, strict=True):
        own.normal_(generator=generator)
    return noise


def check_spreads(min_std: float, initial_std: float) -> None:
    """Refuse a floor above the spread it belongs to, and an empty spread."""
    require(
        0 <= min_std <= initial_std < torch.inf and initial_std > 0,
        f"the spreads must satisfy 0 <= min_std <= initial_std, got min_std={min_std} and "
        f"initial_std={initial_std}",
    )
