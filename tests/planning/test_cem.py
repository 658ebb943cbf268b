"""CEM and random shooting against problems whose optimum is known in closed form."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.planning import (
    CEM,
    CEMConfig,
    RandomShooting,
    RandomShootingConfig,
)

BOUNDED = gym.spaces.Box(-1, 1, (2,), np.float32)
UNBOUNDED = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACCURATE = CEMConfig(num_samples=256, num_elites=32, num_iterations=40, min_std=0.0, momentum=0.0)


def linear_quadratic(horizon, start=3.0, control_cost=0.5):
    """Cost of x' = x + u, sum of x^2 + r u^2 per dimension, and the optimal controls."""
    lower = np.tril(np.ones((horizon, horizon)))
    controls = np.linalg.solve(
        lower.T @ lower + control_cost * np.eye(horizon), -lower.T @ np.full(horizon, start)
    )

    def cost_fn(actions):
        states = start + actions.cumsum(1)
        return (states.square() + control_cost * actions.square()).sum((1, 2))

    return cost_fn, torch.tensor(controls, dtype=torch.float32)[:, None].expand(-1, 2)


def test_cem_finds_the_linear_quadratic_optimum():
    cost_fn, optimum = linear_quadratic(horizon=4)
    config = CEMConfig(
        num_samples=512, num_elites=64, num_iterations=60, initial_std=2.0, min_std=0.0
    )
    solution = CEM(config).solve(cost_fn, UNBOUNDED, 4, seed=0)
    assert torch.allclose(solution.actions, optimum, atol=0.02)
    assert float(cost_fn(solution.actions[None])) < float(cost_fn(optimum[None])) * 1.001


def test_cem_stays_in_the_box_and_finds_the_constrained_optimum():
    # Separable and convex, so the constrained optimum is the clamped target.
    target = torch.tensor([3.0, -0.25])
    seen = []

    def cost_fn(actions):
        seen.append(actions)
        return (actions - target).square().sum((1, 2))

    solution = CEM(ACCURATE).solve(cost_fn, BOUNDED, 3, seed=0)
    assert torch.allclose(solution.actions, torch.tensor([1.0, -0.25]).expand(3, 2), atol=0.02)
    assert torch.cat(seen).abs().max() <= 1


def test_cem_scales_its_spread_to_the_action_range():
    space = gym.spaces.Box(np.float32([0, -100]), np.float32([1, 100]))
    target = torch.tensor([0.3, 40.0])
    scale = torch.tensor([1.0, 200.0])
    solution = CEM(ACCURATE).solve(
        lambda actions: ((actions - target) / scale).square().sum((1, 2)), space, 2, seed=0
    )
    assert torch.allclose(solution.actions / scale, (target / scale).expand(2, 2), atol=0.02)


def test_cem_ranks_costs_that_are_not_finite_last():
    def cost_fn(actions):
        costs = (actions - 0.5).square().sum((1, 2))
        costs[actions[:, 0, 0] > 0.6] = torch.nan
        costs[actions[:, 0, 1] > 0.6] = -torch.inf
        return costs

    solution = CEM(ACCURATE).solve(cost_fn, BOUNDED, 1, seed=0)
    assert torch.allclose(solution.actions, torch.full((1, 2), 0.5), atol=0.02)
    with pytest.raises(SfvgenError, match="finite cost"):
        CEM().solve(lambda actions: torch.full((len(actions),), torch.nan), BOUNDED, 1, seed=0)


def test_cem_with_a_single_finite_candidate_returns_it():
    def only_the_mean(actions):
        costs = torch.full((len(actions),), torch.inf)
        costs[0] = 1.0
        return costs

    solution = CEM(CEMConfig(num_iterations=1)).solve(only_the_mean, BOUNDED, 3, seed=0)
    assert torch.equal(solution.actions, torch.zeros(3, 2))


def test_cem_candidate_zero_is_the_mean():
    first = []

    def cost_fn(actions):
        first.append(actions[0].clone())
        return (actions - 0.7).square().sum((1, 2))

    start = torch.full((2, 2), 0.7)
    solution = CEM(CEMConfig(num_iterations=3)).solve(cost_fn, BOUNDED, 2, 0, initial_mean=start)
    assert torch.equal(first[0], start)
    # The start is the optimum, stays in the pool, and so is the best of every iteration.
    assert solution.best_costs == (0.0, 0.0, 0.0)


def test_cem_is_repeatable_and_seeded():
    cost_fn, _ = linear_quadratic(3)
    first, again, other = (CEM().solve(cost_fn, BOUNDED, 3, seed=s).actions for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def recorded(config, target=0.9, horizon=2, seed=0):
    """The candidates of each iteration, and the solution."""
    calls = []

    def cost_fn(actions):
        calls.append(actions)
        return (actions - target).square().sum((1, 2))

    return calls, CEM(config).solve(cost_fn, UNBOUNDED, horizon, seed)


def test_every_cem_hyperparameter_has_its_effect():
    base = {
        "num_samples": 400,
        "num_elites": 40,
        "num_iterations": 5,
        "initial_std": 0.5,
        "min_std": 0.0,
        "momentum": 0.0,
        "num_kept_elites": 0,
    }
    calls, solution = recorded(CEMConfig(**base))
    assert [len(c) for c in calls] == [400] * 5
    assert solution.num_evaluations == 2000
    # initial_std is the spread of the first candidates around the middle.
    assert float(calls[0].std()) == pytest.approx(0.5, rel=0.1)
    wide, _ = recorded(CEMConfig(**{**base, "initial_std": 2.0}))
    assert float(wide[0].std()) == pytest.approx(2.0, rel=0.1)
    # Fewer elites: greedier, the spread falls faster.
    _, greedy = recorded(CEMConfig(**{**base, "num_elites": 4}))
    assert float(greedy.std.mean()) < float(solution.std.mean())
    # The floor holds the spread up.
    _, floored = recorded(CEMConfig(**{**base, "min_std": 0.3}))
    assert float(floored.std.min()) == pytest.approx(0.3)
    # Momentum keeps that share of the old mean, which began at zero.
    once = {**base, "num_iterations": 1}
    _, moved = recorded(CEMConfig(**once))
    _, damped = recorded(CEMConfig(**{**once, "momentum": 0.75}))
    assert torch.allclose(damped.actions, 0.25 * moved.actions, atol=1e-6)
    # A kept elite is as good as ever: the best cost cannot rise, and nothing is evaluated twice.
    flat = {**base, "num_samples": 8, "num_elites": 2, "min_std": 0.5, "num_iterations": 12}
    _, forgetful = recorded(CEMConfig(**flat))
    keeping_calls, keeping = recorded(CEMConfig(**{**flat, "num_kept_elites": 1}))
    assert list(keeping.best_costs) == sorted(keeping.best_costs, reverse=True)
    assert list(forgetful.best_costs) != sorted(forgetful.best_costs, reverse=True)
    assert sum(len(c) for c in keeping_calls) == keeping.num_evaluations == 96


@pytest.mark.parametrize(
    "bad",
    [
        {"num_samples": 1},
        {"num_elites": 1},
        {"num_elites": 65},
        {"num_iterations": 0},
        {"min_std": -0.1},
        {"min_std": 0.6},
        {"momentum": 1.0},
        {"num_kept_elites": 9},
    ],
)
def test_cem_refuses_bad_settings(bad):
    with pytest.raises(SfvgenError, match=next(iter(bad))):
        CEMConfig(**bad)


def test_random_shooting_returns_the_best_sample():
    seen = []

    def cost_fn(actions):
        seen.append(actions)
        return (actions - 0.3).square().sum((1, 2))

    solution = RandomShooting(RandomShootingConfig(500)).solve(cost_fn, BOUNDED, 2, seed=0)
    (candidates,) = seen
    best = (candidates - 0.3).square().sum((1, 2)).argmin()
    assert torch.equal(solution.actions, candidates[best])
    # Uniform on [-1, 1]: variance 1/3.
    assert float(candidates.var()) == pytest.approx(1 / 3, rel=0.1)
    start = torch.full((2, 2), 0.3)
    again = RandomShooting().solve(cost_fn, BOUNDED, 2, seed=0, initial_mean=start)
    assert torch.equal(again.actions, start)
