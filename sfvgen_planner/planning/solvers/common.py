"""What the solvers share: their protocol, the action bounds, sampling and ranking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import torch

from sfvgen_planner.errors import SfvgenError, require

CostFunction = Callable[[torch.Tensor], torch.Tensor]
"""Costs ``(N,)`` of candidates ``(N, T, A)`` in env units; within one ``solve`` it must give the
same candidate the same cost."""


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        actions: ``(T, A)`` float32 within the action space.
        std: spread ``(T, A)`` that the search ended with, in env units.
        best_costs: lowest cost among the candidates of each iteration.
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
    """Anything that minimises a batched cost over sequences of actions.

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


class Bounds:
    """The box that actions live in: its limits, its middle and its half range ``(A,)``.

    Where a side is open or the box has no width, the half range counts as 1.
    """

    def __init__(self, space: gym.spaces.Box) -> None:
        if space.shape is None or len(space.shape) != 1:
            raise SfvgenError(f"Solvers need a Box of shape (A,), got the shape {space.shape}")
        self.low = torch.as_tensor(space.low, dtype=torch.float32)
        self.high = torch.as_tensor(space.high, dtype=torch.float32)
        self.bounded = torch.isfinite(self.high - self.low) & (self.high > self.low)
        self.scale = torch.where(self.bounded, (self.high - self.low) / 2, 1.0)
        middle = torch.where(self.bounded, (self.high + self.low) / 2, 0.0)
        self.middle = self.clamp(middle)

    def clamp(self, actions: torch.Tensor) -> torch.Tensor:
        """The nearest actions within the box."""
        return actions.clamp(self.low, self.high)

    def start(self, horizon: int, initial_mean: torch.Tensor | None) -> torch.Tensor:
        """The sequence ``(T, A)`` that a search starts from."""
        require(horizon >= 1, f"horizon must be at least 1, got {horizon}")
        shape = (horizon, len(self.low))
        if initial_mean is None:
            return self.middle.expand(shape).clone()
        require(
            tuple(initial_mean.shape) == shape,
            f"initial_mean must have the shape {shape}, got {tuple(initial_mean.shape)}",
        )
        return self.clamp(initial_mean.to(torch.float32))

    def around(self, mean: torch.Tensor, std: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Candidates ``(N, T, A)`` around the mean, from unit noise; candidate 0 is the mean."""
        candidates = self.clamp(mean + std * noise)
        candidates[0] = mean
        return candidates

    def sample(self, count: int, horizon: int, generator: torch.Generator) -> torch.Tensor:
        """Uniform candidates ``(N, T, A)``; standard normal ones where the box is open."""
        shape = (count, *self.start(horizon, None).shape)
        noise = 2 * torch.rand(shape, generator=generator) - 1
        if not self.bounded.all():
            normal = torch.randn(shape, generator=generator)
            noise = torch.where(self.bounded, noise, normal)
        return self.clamp(self.middle + self.scale * noise)


def ranked(costs: torch.Tensor, num_candidates: int) -> torch.Tensor:
    """Costs ``(N,)`` on the CPU, with whatever is not finite ranking last.

    Raises:
        SfvgenError: where there is not one cost for each candidate, or none is finite.
    """
    costs = costs.detach().to("cpu", torch.float32)
    require(
        costs.shape == (num_candidates,),
        f"the cost function must return one cost for each of the {num_candidates} candidates, "
        f"got the shape {tuple(costs.shape)}",
    )
    finite = torch.isfinite(costs)
    require(bool(finite.any()), "no candidate has a finite cost; check the objective")
    return torch.where(finite, costs, torch.inf)


def make_generator(seed: int | None) -> torch.Generator:
    """A generator on the CPU; without a seed, every one differs."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def check_counts(config: object, *names: str) -> None:
    """Refuse a config with one of these fields below 1."""
    for name in names:
        value = getattr(config, name)
        require(value >= 1, f"{name} must be at least 1, got {value}")


def check_spreads(min_std: float, initial_std: float) -> None:
    """Refuse a floor above the spread it belongs to, and an empty spread."""
    require(
        0 <= min_std <= initial_std < torch.inf and initial_std > 0,
        f"the spreads must satisfy 0 <= min_std <= initial_std, got min_std={min_std} and "
        f"initial_std={initial_std}",
    )
