"""What iCEM adds to CEM."""

from dataclasses import asdict

import gymnasium as gym
import numpy as np
import pytest
import torch

from sfvgen_planner.planning import CEM, ICEM, CEMConfig, ICEMConfig
from sfvgen_planner.planning.solvers.cem import coloured
from tests.linear_quadratic import DoubleIntegrator

BOUNDED = gym.spaces.Box(-1, 1, (1,), np.float32)
PLAIN = {"noise_beta": 0.0, "population_decay": 1.0, "return_best": False}


def test_icem_without_its_additions_is_cem():
    assert ICEMConfig(**PLAIN) == ICEMConfig(**asdict(CEMConfig()))
    problem = DoubleIntegrator()
    plain, cem = (
        solver.solve(problem.cost, BOUNDED, problem.horizon, seed=0)
        for solver in (ICEM(ICEMConfig(**PLAIN)), CEM())
    )
    assert torch.equal(plain.actions, cem.actions)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, 3.0])
def test_noise_has_the_spectrum_it_is_asked_for(beta):
    horizon = 64
    white = torch.randn(4000, horizon, 2, generator=torch.Generator().manual_seed(0))
    noise = coloured(white, beta)
    assert noise.shape == white.shape
    assert float(noise.var()) == pytest.approx(1, rel=0.05)
    # Every step has the same spread.
    assert noise.std((0, 2)).numpy() == pytest.approx(np.ones(horizon), rel=0.05)
    power = np.square(np.abs(np.fft.rfft(noise.numpy(), axis=1))).mean((0, 2))[1:-1]
    slope, _ = np.polyfit(np.log(np.arange(1, len(power) + 1)), np.log(power), 1)
    assert slope == pytest.approx(-beta, abs=0.05)


def test_white_noise_is_untouched_and_larger_beta_is_smoother():
    white = torch.randn(2000, 20, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(coloured(white, 0.0), white)
    correlations = []
    for beta in (0.0, 0.5, 1.0, 2.0, 4.0):
        noise = coloured(white, beta)
        correlations.append(float((noise[:, 1:] * noise[:, :-1]).mean() / noise.square().mean()))
    assert correlations[0] == pytest.approx(0, abs=0.02)
    assert correlations == sorted(correlations)
    assert correlations[-1] > 0.9


def test_a_horizon_of_one_is_white():
    white = torch.randn(8, 1, 2)
    assert torch.allclose(coloured(white, 2.0), white)


def test_noise_beta_makes_the_candidates_smooth():
    def roughness(beta):
        calls = []
        solver = ICEM(ICEMConfig(num_samples=500, num_iterations=1, noise_beta=beta))
        solver.solve(lambda a: calls.append(a) or a.sum((1, 2)), BOUNDED, 20, seed=0)
        return float(calls[0].diff(dim=1).square().mean())

    assert roughness(4.0) < 0.5 * roughness(1.0) < 0.5 * roughness(0.0)


def test_population_decays_to_twice_the_elites():
    sizes = []

    def cost_fn(actions):
        sizes.append(len(actions))
        return actions.square().sum((1, 2))

    config = ICEMConfig(num_samples=100, num_elites=10, num_iterations=6, population_decay=1.5)
    solution = ICEM(config).solve(cost_fn, BOUNDED, 3, seed=0)
    # 100 / 1.5**i: 100, 66.7, 44.4, 29.6, 19.8, 13.2; never below 20.
    assert sizes == [100, 66, 44, 29, 20, 20]
    assert solution.num_evaluations == 279
    # A population that was smaller from the start does not grow.
    assert [ICEMConfig(num_samples=12, num_elites=8).population(i) for i in range(2)] == [12, 12]


@pytest.mark.parametrize("num_kept_elites", [0, 4])
def test_the_best_of_the_last_pool_is_returned(num_kept_elites):
    problem = DoubleIntegrator()
    calls = []

    def cost_fn(actions):
        calls.append(actions)
        return problem.cost(actions)

    config = ICEMConfig(num_iterations=5, num_kept_elites=num_kept_elites)
    solution = ICEM(config).solve(cost_fn, BOUNDED, problem.horizon, seed=0)
    # Kept elites carry the best of all along.
    pool = torch.cat(calls) if num_kept_elites else calls[-1]
    assert torch.equal(solution.actions, pool[problem.cost(pool).argmin()])
    assert float(problem.cost(solution.actions[None])) == pytest.approx(solution.best_costs[-1])
