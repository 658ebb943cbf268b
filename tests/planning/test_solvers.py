"""What every solver promises, on a double integrator whose optimum is known."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.planning import (
    CEM,
    ICEM,
    MPPI,
    CEMConfig,
    Gradient,
    GradientConfig,
    ICEMConfig,
    MPPIConfig,
    RandomShooting,
    RandomShootingConfig,
    SearchConfig,
)
from tests.linear_quadratic import DoubleIntegrator

UNBOUNDED = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
LIMIT = 0.4
BOUNDED = gym.spaces.Box(-LIMIT, LIMIT, (1,), np.float32)
ACCURACY = {"num_samples": 512, "num_iterations": 40, "min_std": 0.05}
ACCURATE = [
    CEM(CEMConfig(num_elites=64, **ACCURACY)),
    ICEM(ICEMConfig(num_elites=64, noise_beta=0.5, **ACCURACY)),
    MPPI(MPPIConfig(temperature=0.001, **ACCURACY)),
    Gradient(GradientConfig(num_iterations=150)),
]
QUICK = [CEM(), ICEM(), MPPI(), Gradient()]


def name(solver):
    return type(solver).__name__


def test_the_two_closed_forms_agree():
    problem = DoubleIntegrator()
    controls, cost = problem.riccati()
    assert problem.clamped(100.0) == pytest.approx(controls, abs=1e-9)
    actions = torch.tensor(controls, dtype=torch.float32)[None, :, None]
    assert float(problem.cost(actions)) == pytest.approx(cost, rel=1e-5)


@pytest.mark.parametrize("solver", ACCURATE, ids=name)
def test_solvers_find_the_riccati_optimum(solver):
    problem = DoubleIntegrator()
    controls, cost = problem.riccati()
    solution = solver.solve(problem.cost, UNBOUNDED, problem.horizon, seed=0)
    assert solution.actions[:, 0].numpy() == pytest.approx(controls, abs=0.03)
    assert float(problem.cost(solution.actions[None])) == pytest.approx(cost, rel=1e-3)


@pytest.mark.parametrize("solver", ACCURATE, ids=name)
def test_solvers_find_the_clamped_optimum_and_stay_in_the_box(solver):
    problem = DoubleIntegrator()
    truth = problem.clamped(LIMIT)
    assert np.isclose(np.abs(truth), LIMIT).sum() == 3  # the box matters
    seen = []

    def cost_fn(actions):
        seen.append(actions.detach().clone())
        return problem.cost(actions)

    solution = solver.solve(cost_fn, BOUNDED, problem.horizon, seed=0)
    assert solution.actions[:, 0].numpy() == pytest.approx(truth, abs=0.03)
    assert BOUNDED.high.item() >= torch.cat(seen).abs().max()
    assert BOUNDED.high.item() >= solution.actions.abs().max()
    assert sum(len(actions) for actions in seen) == solution.num_evaluations


@pytest.mark.parametrize("solver", ACCURATE, ids=name)
def test_costs_that_are_not_finite_rank_last(solver):
    def cost_fn(actions):
        first = actions[:, 0, 0]
        cost = (actions - 0.1).square().sum((1, 2))
        cost = torch.where(first > 0.2, torch.nan, cost)
        return torch.where(first < -0.2, -torch.inf, cost)

    solution = solver.solve(cost_fn, BOUNDED, 2, seed=0)
    assert solution.actions.numpy() == pytest.approx(np.full((2, 1), 0.1), abs=0.02)
    with pytest.raises(SfvgenError, match="finite cost"):
        solver.solve(lambda actions: actions.sum((1, 2)) * torch.nan, BOUNDED, 2)


@pytest.mark.parametrize("solver", [*QUICK, RandomShooting()], ids=name)
def test_a_seed_repeats_a_search(solver):
    problem = DoubleIntegrator()
    first, again, other = (
        solver.solve(problem.cost, BOUNDED, problem.horizon, seed).actions for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("solver", [*QUICK, RandomShooting()], ids=name)
def test_the_start_is_candidate_zero(solver):
    calls = []

    def cost_fn(actions):
        calls.append(actions.detach().clone())
        return (actions - 0.3).square().sum((1, 2))

    start = torch.tensor([[0.1], [-0.3], [0.2]])
    solver.solve(cost_fn, BOUNDED, 3, 0, start)
    assert torch.equal(calls[0][0], start)


@pytest.mark.parametrize("solver", ACCURATE, ids=name)
def test_a_shifted_plan_saves_iterations(solver):
    problem = DoubleIntegrator(horizon=8)
    plan, _ = problem.riccati()
    moved = DoubleIntegrator(horizon=8, start=(1 + 0.125 * plan[0], 0.5 * plan[0]))
    _, optimum = moved.riccati()
    shifted = torch.tensor([*plan[1:], 0.0], dtype=torch.float32)[:, None]

    def iterations(start):
        costs = solver.solve(moved.cost, UNBOUNDED, 8, 0, start).best_costs
        return next(i for i, cost in enumerate(costs) if cost < 1.02 * optimum)

    assert iterations(shifted) < iterations(None)


def test_settings_that_count_are_whole_numbers():
    with pytest.raises(SfvgenError, match=r"num_kept_elites must be a whole number, got 1\.5"):
        CEMConfig(num_kept_elites=1.5)
    with pytest.raises(SfvgenError, match=r"horizon must be a whole number, got 8\.0"):
        SearchConfig(horizon=8.0)


@pytest.mark.parametrize("solver", [*QUICK, RandomShooting()], ids=name)
def test_a_start_may_be_a_numpy_array(solver):
    start = np.full((3, 1), 0.25, np.float32)
    found = [
        solver.solve(lambda a: (a - 0.7).square().sum((1, 2)), BOUNDED, 3, 0, initial_mean=mean)
        for mean in (start, torch.from_numpy(start))
    ]
    assert torch.equal(found[0].actions, found[1].actions)


@pytest.mark.parametrize("solver", [*QUICK, RandomShooting()], ids=name)
def test_solvers_refuse_misfits(solver):
    with pytest.raises(SfvgenError, match=r"horizon must be a whole number, got 1\.5"):
        solver.solve(lambda a: a.sum((1, 2)), BOUNDED, 1.5)
    with pytest.raises(SfvgenError, match="horizon"):
        solver.solve(lambda a: a.sum((1, 2)), BOUNDED, 0)
    with pytest.raises(SfvgenError, match="initial_mean"):
        solver.solve(lambda a: a.sum((1, 2)), BOUNDED, 3, initial_mean=torch.zeros(2, 2))
    with pytest.raises(SfvgenError, match="one cost for each"):
        solver.solve(lambda a: a.sum(2), BOUNDED, 3)
    with pytest.raises(SfvgenError, match="seed must be at least 0, got -1"):
        solver.solve(lambda a: a.sum((1, 2)), BOUNDED, 3, seed=-1)
    with pytest.raises(SfvgenError, match="shape"):
        solver.solve(lambda a: a.sum((1, 2)), gym.spaces.Box(-1, 1, (2, 2)), 3)


@pytest.mark.parametrize(
    "space", [gym.spaces.Discrete(4), gym.spaces.MultiDiscrete([3, 3]), gym.spaces.MultiBinary(2)]
)
def test_other_action_spaces_are_refused(space):
    with pytest.raises(SfvgenError, match=r"need a Box of the shape \(A,\), got (Multi|Discrete)"):
        CEM().solve(lambda a: a.sum((1, 2)), space, 3)


@pytest.mark.parametrize("solver", [*QUICK, RandomShooting()], ids=name)
def test_an_action_that_cannot_move_stays(solver):
    space = gym.spaces.Box(np.float32([-1, 3]), np.float32([1, 3]))
    solution = solver.solve(lambda a: a.square().sum((1, 2)), space, 2, seed=0)
    assert torch.equal(solution.actions[:, 1], torch.full((2,), 3.0))


@pytest.mark.parametrize(
    ("config", "bad"),
    [
        (ICEMConfig, {"population_decay": 0.9}),
        (CEMConfig, {"num_iterations": 1.5}),
        (MPPIConfig, {"num_samples": 64.0}),
        (ICEMConfig, {"noise_beta": -1.0}),
        (ICEMConfig, {"num_iterations": 0}),
        (MPPIConfig, {"num_samples": 0}),
        (MPPIConfig, {"num_iterations": 0}),
        (MPPIConfig, {"temperature": 0.0}),
        (MPPIConfig, {"temperature": float("inf")}),
        (MPPIConfig, {"min_std": 0.6}),
        (MPPIConfig, {"initial_std": 0.0}),
        (GradientConfig, {"num_samples": 0}),
        (GradientConfig, {"num_iterations": 0}),
        (GradientConfig, {"learning_rate": 0.0}),
        (GradientConfig, {"initial_std": -0.1}),
        (GradientConfig, {"max_batch_size": 0}),
        (CEMConfig, {"max_batch_size": 0}),
        (MPPIConfig, {"max_batch_size": 0}),
    ],
)
def test_bad_settings_are_refused(config, bad):
    with pytest.raises(SfvgenError, match=next(iter(bad))):
        config(**bad)


@pytest.mark.parametrize("space", [BOUNDED, UNBOUNDED], ids=["bounded", "unbounded"])
@pytest.mark.parametrize("solver", [*QUICK, RandomShooting()], ids=name)
def test_environments_are_solved_side_by_side_as_each_is_alone(solver, space):
    """Each has a problem of its own; one of them has costs that are not finite."""
    goals = torch.tensor([-0.3, 0.1, 0.2])

    def cost_fn(actions):
        costs = (actions - goals[:, None, None, None]).square().sum((2, 3))
        is_cliff = (torch.arange(len(goals))[:, None] == 1) & (actions[..., 0, 0] > 0.3)
        return torch.where(is_cliff, torch.inf, costs)

    seeds, starts = [5, 6, 7], torch.rand(3, 4, 1) * 0.2
    together = solver.solve_batch(cost_fn, space, 4, seeds, starts)
    for row, solution in enumerate(together):

        def own(actions, row=row):
            return cost_fn(actions.expand(len(goals), *actions.shape))[row]

        alone = solver.solve(own, space, 4, seeds[row], starts[row])
        assert torch.allclose(solution.actions, alone.actions, atol=1e-5)
        assert torch.allclose(solution.std, alone.std, atol=1e-5)
        assert solution.best_costs == pytest.approx(alone.best_costs, rel=1e-4, abs=1e-6)
        assert solution.num_evaluations == alone.num_evaluations


@pytest.mark.parametrize("solver", [*QUICK, RandomShooting()], ids=name)
def test_a_batch_in_pieces_finds_the_same(solver):
    sizes = []

    def cost_fn(actions):
        sizes.append(actions.shape[0] * actions.shape[1])
        return (actions - torch.tensor([0.1, -0.2])[:, None, None, None]).square().sum((2, 3))

    whole = solver.solve_batch(cost_fn, BOUNDED, 3, [0, 1])
    evaluated = sum(sizes)
    sizes.clear()
    limited = type(solver)(replace(solver.config, max_batch_size=7))
    for solution, same in zip(limited.solve_batch(cost_fn, BOUNDED, 3, [0, 1]), whole, strict=True):
        assert torch.allclose(solution.actions, same.actions, atol=1e-6)
    assert max(sizes) == 6
    assert sum(sizes) == evaluated


@pytest.mark.parametrize("solver", [*QUICK, RandomShooting()], ids=name)
def test_a_piece_has_a_candidate_of_each_environment(solver):
    sizes = set()

    def cost_fn(actions):
        sizes.add(tuple(actions.shape[:2]))
        return actions.square().sum((2, 3))

    limited = type(solver)(replace(solver.config, max_batch_size=2))
    limited.solve_batch(cost_fn, BOUNDED, 3, range(5))
    assert sizes == {(5, 1)}


@pytest.mark.parametrize("solver", [*QUICK, RandomShooting()], ids=name)
def test_a_batch_refuses_misfits(solver):
    def cost_fn(actions):
        return actions.sum((2, 3))

    with pytest.raises(SfvgenError, match="at least one environment"):
        solver.solve_batch(cost_fn, BOUNDED, 3, [])
    with pytest.raises(SfvgenError, match="for each of 2 environments"):
        solver.solve_batch(cost_fn, BOUNDED, 3, [0, 1], torch.zeros(3, 3, 1))
    with pytest.raises(SfvgenError, match=r"2 x \d+ candidates"):
        solver.solve_batch(lambda a: a.sum((1, 2, 3)), BOUNDED, 3, [0, 1])
    with pytest.raises(SfvgenError, match="no candidate has a finite cost"):
        # Of the second environment alone.
        solver.solve_batch(
            lambda a: cost_fn(a) + torch.tensor([[0.0], [torch.inf]]), BOUNDED, 3, [0, 1]
        )


@pytest.mark.parametrize("solver", [*QUICK, RandomShooting()], ids=name)
def test_a_large_constant_in_the_costs_changes_nothing(solver):
    def cost(actions):
        return (actions.double() - 0.3).square().sum((1, 2))

    space = gym.spaces.Box(-1, 1, (2,))
    alone = solver.solve(cost, space, 3, seed=0).actions
    with_offset = solver.solve(lambda actions: 1e8 + cost(actions), space, 3, seed=0).actions
    assert torch.allclose(with_offset, alone, atol=1e-3)


@pytest.mark.parametrize("solver", [*QUICK, RandomShooting()], ids=name)
def test_actions_lie_within_a_box_of_double_precision(solver):
    space = gym.spaces.Box(np.array([-0.1, 0.7]), np.array([0.1, 0.9]), dtype=np.float64)
    actions = solver.solve(lambda x: x[..., 1].sum(1) - x[..., 0].sum(1), space, 2, seed=0).actions
    for action in actions.numpy():
        assert space.contains(action.astype(np.float64))


@pytest.mark.parametrize("solver", [*QUICK, RandomShooting()], ids=name)
def test_solutions_are_single_precision_whatever_the_default(solver):
    def cost(actions):
        return (actions - 0.3).square().sum((1, 2))

    space = gym.spaces.Box(-1, 1, (2,))
    expected = solver.solve(cost, space, 3, seed=np.int64(0)).actions
    torch.set_default_dtype(torch.float64)
    try:
        found = solver.solve(cost, space, 3, seed=0).actions
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("solver", [CEM(), ICEM(), MPPI(), RandomShooting()], ids=name)
def test_costs_may_be_an_array(solver):
    def cost(actions):
        return (actions - 0.3).square().sum((1, 2))

    space = gym.spaces.Box(-1, 1, (2,))
    found = solver.solve(lambda actions: cost(actions).numpy(), space, 3, seed=0).actions
    assert torch.equal(found, solver.solve(cost, space, 3, seed=0).actions)


@pytest.mark.parametrize("space", [BOUNDED, UNBOUNDED], ids=["bounded", "unbounded"])
def test_the_spread_of_random_shooting_is_that_of_its_samples(space):
    seen = []

    def cost(actions):
        seen.append(actions)
        return actions.square().sum(dim=(1, 2))

    solution = RandomShooting(RandomShootingConfig(20_000)).solve(cost, space, 3, seed=0)
    (samples,) = seen
    torch.testing.assert_close(solution.std, samples.std(dim=0), rtol=0.02, atol=0)
