"""MPPI: the weights against their limits and against a Gaussian integral."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from sfvgen_planner.planning import MPPI, MPPIConfig

BOUNDED = gym.spaces.Box(-1, 1, (2,), np.float32)
UNBOUNDED = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)


def one_update(temperature, num_samples=64):
    """The candidates, their costs and what one update makes of them."""
    calls = []

    def cost_fn(actions):
        calls.append(actions)
        return (actions - 0.4).square().sum((1, 2))

    config = MPPIConfig(num_samples, num_iterations=1, temperature=temperature)
    solution = MPPI(config).solve(cost_fn, BOUNDED, 3, seed=0)
    (candidates,) = calls
    return candidates, cost_fn(candidates), solution


def test_a_temperature_near_zero_takes_the_best_candidate():
    candidates, costs, solution = one_update(1e-9)
    assert torch.allclose(solution.actions, candidates[costs.argmin()])
    assert solution.std.numpy() == pytest.approx(np.full((3, 2), 0.05))  # the floor


def test_a_high_temperature_takes_the_mean_of_all():
    candidates, _, solution = one_update(1e9)
    assert torch.allclose(solution.actions, candidates.mean(0), atol=1e-6)


def test_weights_are_those_of_the_paper():
    candidates, costs, solution = one_update(0.3)
    weights = np.exp(-(costs.numpy() - costs.numpy().min()) / 0.3)
    expected = np.einsum("n,nta->ta", weights / weights.sum(), candidates.numpy())
    assert solution.actions.numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_one_update_is_the_gaussian_posterior(temperature):
    # Noise N(0, s^2) times exp(-(u - g)^2 / temperature) is a Gaussian of known mean and spread.
    prior, goal = 1 / 0.5**2, 0.8
    config = MPPIConfig(num_samples=200_000, num_iterations=1, temperature=temperature)
    solution = MPPI(config).solve(lambda a: (a - goal).square().sum((1, 2)), UNBOUNDED, 1, 0)
    precision = prior + 2 / temperature
    assert float(solution.actions) == pytest.approx(2 * goal / temperature / precision, abs=0.01)
    assert float(solution.std) == pytest.approx(precision**-0.5, rel=0.02)


def test_a_cost_that_is_not_finite_weighs_nothing():
    def cost_fn(actions):
        costs = torch.zeros(len(actions))
        costs[1:] = torch.tensor([torch.nan, torch.inf, -torch.inf]).repeat(len(actions))[
            : len(actions) - 1
        ]
        return costs

    start = torch.full((3, 2), 0.25)
    solution = MPPI(MPPIConfig(num_iterations=3)).solve(cost_fn, BOUNDED, 3, 0, start)
    assert torch.equal(solution.actions, start)


def test_sizes_and_spreads_are_as_asked():
    def spreads(**settings):
        calls = []
        config = MPPIConfig(num_samples=2000, num_iterations=3, temperature=0.01, **settings)
        solution = MPPI(config).solve(
            lambda a: calls.append(a) or a.square().sum((1, 2)), UNBOUNDED, 1, seed=0
        )
        assert [len(call) for call in calls] == [2000] * 3
        assert solution.num_evaluations == 6000
        return [float(call.std()) for call in calls]

    assert spreads(initial_std=2.0)[0] == pytest.approx(2.0, rel=0.1)
    shrinking = spreads(initial_std=0.5, min_std=0.0)
    assert shrinking[0] > 2 * shrinking[1] > 2 * shrinking[2]
    assert spreads(initial_std=0.5, min_std=0.2)[1:] == pytest.approx([0.2, 0.2], rel=0.1)
    assert spreads(initial_std=0.5, min_std=0.5) == pytest.approx([0.5] * 3, rel=0.1)


def test_a_spread_is_relative_to_the_action_range():
    space = gym.spaces.Box(np.float32([0, -100]), np.float32([1, 100]))
    calls = []
    config = MPPIConfig(num_samples=4000, num_iterations=1, initial_std=0.2)
    MPPI(config).solve(lambda a: calls.append(a) or a.sum((1, 2)), space, 1, seed=0)
    assert calls[0][:, 0].std(0).numpy() == pytest.approx([0.1, 20], rel=0.1)
