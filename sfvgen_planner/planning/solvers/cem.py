"""The cross-entropy method."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import torch

from sfvgen_planner.errors import check_counts, require, require_count
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
class CEMConfig:
    """Settings of :class:`CEM`.

    Spreads are in units of half the action range, or of the action itself where it is unbounded.

    Attributes:
        num_samples: candidates of the first iteration.
        num_elites: candidates that the next distribution is fitted to.
        num_iterations: refits.
        initial_std: spread of the first iteration.
        min_std: floor of the spread, against early collapse.
        momentum: share of the old mean and spread kept at each refit, from 0 up to 1.
        num_kept_elites: best candidates that stay in the pool of the next iteration; their cost
            is not computed again.
        population_decay: each iteration has this many times fewer candidates than the one before,
            but no fewer than twice ``num_elites``; at least 1.
        noise_beta: the noise along the horizon has a power spectrum of ``1 / f**noise_beta``:
            0 is white, and the larger it is the smoother are the candidates.
        return_best: return the best candidate of the last iteration rather than the mean.
        max_batch_size: candidates in one call of the cost function, those of all environments
            together, but at least one of each; all by default. Where the rollouts are cheap,
            batches that fit into the processor's cache are faster.
    """

    num_samples: int = 64
    num_elites: int = 8
    num_iterations: int = 4
    initial_std: float = 0.5
    min_std: float = 0.05
    momentum: float = 0.1
    num_kept_elites: int = 4
    population_decay: float = 1.0
    noise_beta: float = 0.0
    return_best: bool = False
    max_batch_size: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, "num_samples", "num_elites", "num_iterations", "max_batch_size")
        require(self.num_samples >= 2, f"num_samples must be at least 2, got {self.num_samples}")
        require(
            2 <= self.num_elites <= self.num_samples,
            f"num_elites must be from 2 to num_samples={self.num_samples}, got {self.num_elites}",
        )
        require(
            self.population_decay >= 1,
            f"population_decay must be at least 1, got {self.population_decay}",
        )
        check_spreads(self.min_std, self.initial_std)
        require(0 <= self.momentum < 1, f"momentum must be in [0, 1), got {self.momentum}")
        require_count("num_kept_elites", self.num_kept_elites, least=0)
        require(
            self.num_kept_elites <= self.num_elites,
            f"num_kept_elites must be from 0 to num_elites={self.num_elites}, "
            f"got {self.num_kept_elites}",
        )
        require(
            0 <= self.noise_beta <= 10, f"noise_beta must be from 0 to 10, got {self.noise_beta}"
        )

    def population(self, iteration: int) -> int:
        """Candidates of an iteration, counted from 0."""
        floor = min(self.num_samples, 2 * self.num_elites)
        return max(int(self.num_samples * self.population_decay**-iteration), floor)


class CEM(BatchSolver):
    """Cross-entropy method with a diagonal Gaussian over the whole action sequence.

    Candidates are clamped to the action space, the mean is candidate 0, a cost that is not finite
    ranks last, and the elite mean is returned rather than the best candidate, which would be the
    one that best exploits the model's errors.
    """

    def __init__(self, config: CEMConfig | None = None) -> None:
        self.config = config or CEMConfig()

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
        std = config.initial_std * bounds.scale.expand_as(mean)
        min_std = config.min_std * bounds.scale
        elites = mean.new_empty(len(seeds), 0, mean[0].numel())
        elite_costs = torch.empty(len(seeds), 0, dtype=torch.float64)
        best_costs = []
        num_evaluations = 0
        for iteration in range(config.num_iterations):
            num_samples = config.population(iteration)
            noise = _noise((num_samples, *mean.shape[1:]), generators, config.noise_beta)
            candidates = bounds.around(mean, std, noise)
            costs = evaluate(cost_fn, candidates, config.max_batch_size)
            num_evaluations += num_samples
            kept = slice(config.num_kept_elites)
            pool = torch.cat([candidates.flatten(2), elites[:, kept]], dim=1)
            costs = torch.cat([costs, elite_costs[:, kept]], dim=1)
            elite_costs, order = costs.topk(config.num_elites, dim=1, largest=False)
            best_costs.append(lowest_costs(elite_costs))
            elites = pool.gather(1, order[:, :, None].expand(-1, -1, pool.shape[2]))
            # An iteration with few finite costs refits to those alone.
            weights = (elite_costs < torch.inf).to(mean)
            weights = (weights / weights.sum(dim=1, keepdim=True))[:, None]
            fitted = weights @ elites
            spread = (weights @ (elites - fitted).square()).sqrt().view_as(mean)
            # The mean of clamped candidates may leave the box by a rounding error.
            mean = bounds.clamp(torch.lerp(fitted.view_as(mean), mean, config.momentum))
            std = torch.lerp(spread, std, config.momentum).maximum(min_std)
        actions = elites[:, 0].view_as(mean) if config.return_best else mean
        return solutions(actions, std, best_costs, num_evaluations)


def _noise(
    shape: tuple[int, int, int], generators: Sequence[torch.Generator], beta: float
) -> torch.Tensor:
    """Unit noise ``(E, N, T, A)``, coloured along T."""
    if beta == 0:
        return standard_normal(shape, generators)
    # Drawn with T last, it needs no copy to be multiplied along T.
    num_samples, horizon, size = shape
    return coloured(standard_normal((num_samples, size, horizon), generators).mT, beta)


def coloured(white: torch.Tensor, beta: float) -> torch.Tensor:
    """Give white noise ``(..., T, A)`` a power spectrum ``1 / f**beta`` over T; variance 1 stays.

    The noise is periodic in T. The mean counts as the lowest frequency, ``1 / T``, so that it
    stays finite (Timmer and Koenig, 1995).
    """
    if beta == 0:
        return white
    return (white.mT @ _filter(white.shape[-2], beta).T).mT


@functools.cache
def _filter(horizon: int, beta: float) -> torch.Tensor:
    """The colouring as a matrix ``(T, T)``: over a planner's horizon faster than transforming."""
    frequency = torch.fft.fftfreq(horizon, dtype=torch.float32).abs().clamp(min=1 / horizon)
    gain = frequency ** (-beta / 2)
    gain = gain / gain.square().mean().sqrt()
    impulses = torch.fft.fft(torch.eye(horizon, dtype=torch.float32), dim=0)
    return torch.fft.ifft(gain[:, None] * impulses, dim=0).real.contiguous()
