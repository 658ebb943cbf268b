"""Solvers: they minimise a batched cost over action sequences and know nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

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


class Solver(Protocol):
    """Anything that minimises a batched cost over sequences of actions."""

    def solve(
        self,
        cost_fn: CostFunction,
        action_space: gym.spaces.Box,
        horizon: int,
        seed: int | None = None,
        initial_mean: torch.Tensor | None = None,
    ) -> Solution:
        """Minimise ``cost_fn`` over ``(horizon, A)`` sequences, starting at ``initial_mean``."""


@dataclass(frozen=True)
class CEMConfig:
    """Settings of :class:`CEM`.

    Spreads are in units of half the action range, or of the action itself where it is unbounded.

    Attributes:
        num_samples: candidates per iteration.
        num_elites: candidates that the next distribution is fitted to.
        num_iterations: refits.
        initial_std: spread of the first iteration.
        min_std: floor of the spread, against early collapse.
        momentum: share of the old mean and spread kept at each refit, from 0 up to 1.
        num_kept_elites: best candidates that stay in the pool of the next iteration; their cost
            is not computed again.
    """

    num_samples: int = 64
    num_elites: int = 8
    num_iterations: int = 4
    initial_std: float = 0.5
    min_std: float = 0.05
    momentum: float = 0.1
    num_kept_elites: int = 4

    def __post_init__(self) -> None:
        require(self.num_samples >= 2, f"num_samples must be at least 2, got {self.num_samples}")
        require(
            2 <= self.num_elites <= self.num_samples,
            f"num_elites must be from 2 to num_samples={self.num_samples}, got {self.num_elites}",
        )
        require(
            self.num_iterations >= 1,
            f"num_iterations must be at least 1, got {self.num_iterations}",
        )
        require(
            0 <= self.min_std <= self.initial_std and self.initial_std > 0,
            f"the spreads must satisfy 0 <= min_std <= initial_std, got min_std={self.min_std} and "
            f"initial_std={self.initial_std}",
        )
        require(0 <= self.momentum < 1, f"momentum must be in [0, 1), got {self.momentum}")
        require(
            0 <= self.num_kept_elites <= self.num_elites,
            f"num_kept_elites must be from 0 to num_elites={self.num_elites}, "
            f"got {self.num_kept_elites}",
        )


class CEM:
    """Cross-entropy method with a diagonal Gaussian over the whole action sequence.

    Candidates are clamped to the action space, the mean is candidate 0, a cost that is not finite
    ranks last, and the elite mean is returned rather than the best candidate, which would be the
    one that best exploits the model's errors.
    """

    def __init__(self, config: CEMConfig | None = None) -> None:
        self.config = config or CEMConfig()

    def solve(
        self,
        cost_fn: CostFunction,
        action_space: gym.spaces.Box,
        horizon: int,
        seed: int | None = None,
        initial_mean: torch.Tensor | None = None,
    ) -> Solution:
        """Minimise ``cost_fn``; see :class:`Solver`.

        Raises:
            SfvgenError: where no candidate of an iteration has a finite cost.
        """
        config = self.config
        bounds = _Bounds(action_space)
        generator = _generator(seed)
        mean = bounds.start(horizon, initial_mean)
        std = config.initial_std * bounds.scale.expand_as(mean)
        min_std = config.min_std * bounds.scale
        kept = mean.new_empty(0, *mean.shape)
        kept_costs = mean.new_empty(0)
        best_costs = []
        for _ in range(config.num_iterations):
            noise = torch.randn(config.num_samples, *mean.shape, generator=generator)
            noise[0] = 0
            candidates = bounds.clamp(mean + std * noise)
            costs = torch.cat([_ranked(cost_fn, candidates), kept_costs])
            candidates = torch.cat([candidates, kept])
            elite_costs, order = costs.topk(config.num_elites, largest=False)
            # An iteration with few finite costs refits to those alone.
            order = order[torch.isfinite(elite_costs)]
            elites = candidates[order]
            mean = torch.lerp(elites.mean(0), mean, config.momentum)
            spread = elites.std(0, correction=0)
            std = torch.lerp(spread, std, config.momentum).maximum(min_std)
            kept = elites[: config.num_kept_elites]
            kept_costs = elite_costs[: len(kept)]
            best_costs.append(float(elite_costs[0]))
        num_evaluations = config.num_samples * config.num_iterations
        return Solution(bounds.clamp(mean), std, tuple(best_costs), num_evaluations)


@dataclass(frozen=True)
class RandomShootingConfig:
    """Settings of :class:`RandomShooting`: ``num_samples`` candidates."""

    num_samples: int = 64

    def __post_init__(self) -> None:
        require(self.num_samples >= 1, f"num_samples must be at least 1, got {self.num_samples}")


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
        bounds = _Bounds(action_space)
        candidates = bounds.sample(self.config.num_samples, horizon, _generator(seed))
        if initial_mean is not None:
            candidates[0] = bounds.start(horizon, initial_mean)
        costs = _ranked(cost_fn, candidates)
        best = int(costs.argmin())
        std = candidates.std(0, correction=0)
        return Solution(candidates[best], std, (float(costs[best]),), len(candidates))


class _Bounds:
    """The box that actions live in: its limits, its middle and its half range."""

    def __init__(self, space: gym.spaces.Box) -> None:
        if space.shape is None or len(space.shape) != 1:
            raise SfvgenError(f"Solvers need a Box of shape (A,), got the shape {space.shape}")
        self.low = torch.as_tensor(space.low, dtype=torch.float32)
        self.high = torch.as_tensor(space.high, dtype=torch.float32)
        self.bounded = torch.isfinite(self.low) & torch.isfinite(self.high)
        self.scale = torch.where(self.bounded, (self.high - self.low) / 2, 1.0)
        middle = torch.where(self.bounded, (self.high + self.low) / 2, 0.0)
        self.middle = self.clamp(middle)

    def clamp(self, actions: torch.Tensor) -> torch.Tensor:
        return actions.clamp(self.low, self.high)

    def start(self, horizon: int, initial_mean: torch.Tensor | None) -> torch.Tensor:
        require(horizon >= 1, f"horizon must be at least 1, got {horizon}")
        shape = (horizon, len(self.low))
        if initial_mean is None:
            return self.middle.expand(shape).clone()
        require(
            tuple(initial_mean.shape) == shape,
            f"initial_mean must have the shape {shape}, got {tuple(initial_mean.shape)}",
        )
        return self.clamp(initial_mean.to(torch.float32))

    def sample(self, count: int, horizon: int, generator: torch.Generator) -> torch.Tensor:
        shape = (count, *self.start(horizon, None).shape)
        uniform = 2 * torch.rand(shape, generator=generator) - 1
        normal = torch.randn(shape, generator=generator)
        noise = torch.where(self.bounded, uniform, normal)
        return self.clamp(self.middle + self.scale * noise)


def _ranked(cost_fn: CostFunction, candidates: torch.Tensor) -> torch.Tensor:
    """Costs on the CPU, with whatever is not finite ranking last."""
    costs = cost_fn(candidates).detach().to("cpu", torch.float32)
    require(
        costs.shape == (len(candidates),),
        f"the cost function must return one cost for each of the {len(candidates)} candidates, "
        f"got the shape {tuple(costs.shape)}",
    )
    finite = torch.isfinite(costs)
    require(bool(finite.any()), "no candidate has a finite cost; check the objective")
    return torch.where(finite, costs, torch.inf)


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
