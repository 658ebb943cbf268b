"""The gradient solver."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from sfvgen_planner.data import make_env
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning import Gradient, GradientConfig, MPCConfig, MPCPlanner
from sfvgen_planner.world_model import tiny_world_model
from tests.linear_quadratic import DoubleIntegrator

SPACE = gym.spaces.Box(np.float32([0, -100]), np.float32([1, 100]))
UNBOUNDED = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)


def recorded(cost_fn, space, horizon=2, **settings):
    """The candidates of each call, and the solution."""
    calls = []

    def spy(actions):
        calls.append(actions.detach().clone())
        return cost_fn(actions)

    return calls, Gradient(GradientConfig(**settings)).solve(spy, space, horizon, seed=0)


def test_the_first_step_is_the_learning_rate_in_half_ranges():
    # Adam's first step has the length of the learning rate in every coordinate.
    calls, _ = recorded(lambda a: a.sum((1, 2)), SPACE, num_iterations=2, learning_rate=0.03)
    assert (calls[0] - calls[1])[0].numpy() == pytest.approx(
        np.tile([0.015, 3.0], (2, 1)), rel=1e-3
    )


def test_more_iterations_come_closer():
    problem = DoubleIntegrator()
    _, optimum = problem.riccati()
    gaps = []
    for num_iterations in (5, 20, 80):
        _, solution = recorded(
            problem.cost, UNBOUNDED, problem.horizon, num_iterations=num_iterations
        )
        assert len(solution.best_costs) == num_iterations
        assert solution.num_evaluations == 8 * num_iterations
        gaps.append(float(problem.cost(solution.actions[None])) - optimum)
    assert gaps[0] > 5 * gaps[1] > 25 * gaps[2] > -1e-5


def test_several_starts_find_the_deeper_valley():
    # Two valleys; the start is in the shallow one.
    def cost_fn(actions):
        x = actions[:, 0, 0]
        return torch.minimum((x - 0.2).square() + 0.5, 4 * (x + 0.8).square())

    space = gym.spaces.Box(-1, 1, (1,), np.float32)
    _, alone = recorded(cost_fn, space, 1, num_samples=1)
    first, several = recorded(cost_fn, space, 1, num_samples=16)
    assert float(alone.actions) == pytest.approx(0.2, abs=0.02)
    assert float(several.actions) == pytest.approx(-0.8, abs=0.02)
    assert len(first[0]) == 16


def test_initial_std_is_the_spread_of_the_starts():
    calls, _ = recorded(
        lambda a: a.sum((1, 2)), UNBOUNDED, 1, num_samples=4000, num_iterations=1, initial_std=0.2
    )
    assert float(calls[0].std()) == pytest.approx(0.2, rel=0.1)


def test_max_batch_size_caps_the_calls_and_changes_nothing():
    problem = DoubleIntegrator()
    whole, expected = recorded(problem.cost, UNBOUNDED, problem.horizon)
    capped, solution = recorded(problem.cost, UNBOUNDED, problem.horizon, max_batch_size=3)
    assert [len(call) for call in capped[:3]] == [3, 3, 2]
    assert len(capped) == 3 * len(whole)
    assert torch.allclose(solution.actions, expected.actions, atol=1e-5)


def test_the_best_seen_is_returned_however_far_the_steps_overshoot():
    calls, solution = recorded(
        lambda a: (a - 0.3).square().sum((1, 2)), UNBOUNDED, learning_rate=5.0, num_samples=2
    )
    candidates = torch.cat(calls)
    costs = (candidates - 0.3).square().sum((1, 2))
    assert torch.equal(solution.actions, candidates[costs.argmin()])
    assert min(solution.best_costs) == float(costs.min()) < solution.best_costs[-1]


def test_what_was_found_stays_where_later_costs_are_not_finite():
    """The steps go up to a cliff, from which on no cost is finite."""

    def cost_fn(actions):
        cost = -actions.sum((2, 3))
        return torch.where(actions.amax((2, 3)) > 0.5, torch.nan, cost)

    solver = Gradient(GradientConfig(num_samples=2, learning_rate=0.2, initial_std=1e-3))
    solutions = solver.solve_batch(cost_fn, UNBOUNDED, 1, [0, 1], torch.zeros(2, 1, 1))
    for solution in solutions:
        assert 0.3 < float(solution.actions) <= 0.5
        assert solution.best_costs[-1] == np.inf
        assert min(solution.best_costs) == pytest.approx(-float(solution.actions))
    with pytest.raises(SfvgenError, match="no candidate has a finite cost"):
        solver.solve_batch(cost_fn, UNBOUNDED, 1, [0, 1], torch.tensor([[[0.0]], [[1.0]]]))


def test_works_where_gradients_are_off():
    problem = DoubleIntegrator()
    with torch.no_grad():
        solution = Gradient().solve(problem.cost, UNBOUNDED, problem.horizon, seed=0)
    assert solution.best_costs[-1] == pytest.approx(problem.riccati()[1], rel=0.05)
    assert not solution.actions.requires_grad


@pytest.mark.parametrize(
    "cost_fn",
    [
        lambda actions: actions.detach().sum((1, 2)),
        lambda actions: torch.ones(len(actions), requires_grad=True) * 2,
        lambda actions: torch.no_grad()(torch.sum)(actions, (1, 2)),
    ],
)
def test_a_cost_without_gradients_is_refused(cost_fn):
    with pytest.raises(SfvgenError, match="carry no gradient"):
        Gradient().solve(cost_fn, UNBOUNDED, 2)


def test_plans_through_the_video_world_model():
    """Each step of the search goes down the gradient of the imagined future's cost."""
    model = tiny_world_model(env_id="sfvgen/TabletopReturn-v0")
    env = ImaginationWrapper(make_env("sfvgen/TabletopReturn-v0", {"level": 1}), model)
    observation, _ = env.reset(seed=0)
    solver = Gradient(GradientConfig(num_samples=2, num_iterations=6, learning_rate=0.05))
    planner = MPCPlanner(solver, config=MPCConfig(horizon=4, num_inference_steps=1))
    plan = planner.plan(env, observation["image"][::-1].copy(), seed=0)
    env.close()
    costs = plan.diagnostics["best_costs"]
    assert min(costs) < costs[0] * 0.999
    assert plan.cost == pytest.approx(min(costs), rel=1e-3)
