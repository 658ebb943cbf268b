"""Costs of imagined futures on the point mass, whose futures are known in closed form."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import Imagination
from sfvgen_planner.planning import (
    CEM,
    ActionChange,
    ActionMagnitude,
    CEMConfig,
    GoalImage,
    LearnedDistance,
    LearnedSuccess,
    MPCConfig,
    MPCPlanner,
    TaskReward,
    WeightedSum,
)
from sfvgen_planner.planning.objectives.goal_image import pyramid_energy
from sfvgen_planner.world_model.temporal_distance import TemporalDistance
from tests.point_mass import (
    SIZE,
    SPEED,
    PointMassOutcomeHead,
    PointMassTemporalDistance,
    PointMassWorldModel,
    draw,
    locate,
)

HEAD = PointMassOutcomeHead()
DISTANCE = PointMassTemporalDistance()
SOLVER = CEM(CEMConfig(num_samples=64, num_elites=8, num_iterations=8))


def acted(actions, low, high):
    """Futures of which only the actions matter."""
    model = SimpleNamespace(config=SimpleNamespace(action_low=low, action_high=high))
    return Imagination(torch.zeros(len(actions), 1), torch.zeros(1), model, actions=actions)


@pytest.mark.parametrize("space", ["latent", "pixel"])
def test_goal_image_is_the_mean_squared_error_of_the_last_frame(imagination, space):
    goal = draw(np.array([0.7, 0.3]))
    future = imagination.imagine(np.random.default_rng(0).uniform(-1, 1, (4, 8, 2)))
    expected = np.square((future.frames[:, -1].astype(float) - goal) / 255).mean((1, 2, 3))
    cost = GoalImage(goal, space=space, num_levels=1)(future)
    assert np.allclose(cost, expected, atol=1e-5)


def test_the_pyramid_tells_far_from_farther_where_plain_error_cannot():
    def square(x):
        image = torch.zeros(1, 3, 64, 64)
        image[..., 30:34, x : x + 4] = 1
        return image

    goal = square(4)
    near, far, farther = (
        [float(pyramid_energy(square(x) - goal, levels)) for levels in (1, 5)] for x in (12, 24, 44)
    )
    assert near[0] == far[0] == farther[0]
    assert near[1] < far[1] < farther[1]


def test_the_coarsest_level_is_weighed_by_its_area():
    # A constant image is the same on every level: the weights add up.
    energy = pyramid_energy(torch.ones(2, 3, 16, 16), num_levels=3)
    assert energy.tolist() == pytest.approx([1 + 4 + 16] * 2)
    # 16, 8, 4 and 2 pixels: no fifth level.
    assert float(pyramid_energy(torch.ones(1, 3, 16, 16), 9)) == pytest.approx(1 + 4 + 16 + 64)


@pytest.mark.parametrize("kind", [GoalImage, partial(LearnedDistance, DISTANCE)])
def test_a_goal_is_encoded_once(imagination, kind):
    objective = kind(draw(np.array([0.7, 0.3])))
    future = imagination.imagine(np.zeros((1, 8, 2)))
    objective(future)
    count = imagination.world_model.num_encoded
    objective(future)
    assert imagination.world_model.num_encoded == count


def test_task_reward_sums_the_rewards_of_the_steps_from_the_present_frame(imagination):
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 8, 2))
    cost = TaskReward(HEAD, "left")(imagination.imagine(actions))
    # 10 times the way to the left, whatever lies between the first frame and the last.
    assert cost.numpy() == pytest.approx(10 * SPEED * actions[:, :, 0].sum(axis=1), abs=0.05)


@pytest.mark.parametrize("goal", ["", np.zeros((4, 4, 3), np.uint8)])
@pytest.mark.parametrize("objective", [TaskReward, LearnedSuccess])
def test_outcomes_need_an_instruction(objective, goal):
    with pytest.raises(SfvgenError, match=f"{objective.__name__}: .* must be an instruction"):
        objective(HEAD, goal)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((4, 4, 1), "u1")]
)
def test_goal_image_refuses_what_is_not_an_image(image):
    with pytest.raises(SfvgenError, match=r"GoalImage: .* uint8"):
        GoalImage(image)
    with pytest.raises(SfvgenError, match=r"LearnedDistance: .* uint8"):
        LearnedDistance(DISTANCE, image)
    with pytest.raises(SfvgenError, match="space"):
        GoalImage(np.zeros((4, 4, 3), np.uint8), space="words")
    with pytest.raises(SfvgenError, match="num_levels"):
        GoalImage(np.zeros((4, 4, 3), np.uint8), num_levels=0)


def test_a_goal_image_of_another_size_is_refused(imagination):
    future = imagination.imagine(np.zeros((1, 8, 2)))
    with pytest.raises(SfvgenError, match=r"LearnedDistance: .* 8x8 pixels, .* 32x32; resize it"):
        LearnedDistance(DISTANCE, np.zeros((8, 8, 3), np.uint8))(future)
    for space in ("latent", "pixel"):
        with pytest.raises(SfvgenError, match="image"):
            GoalImage(np.zeros((8, 8, 3), np.uint8), space=space)(future)


def test_the_learned_distance_is_that_of_the_last_frame_from_the_goal(imagination):
    goal = np.array([0.7, 0.3])
    future = imagination.imagine(np.random.default_rng(0).uniform(-1, 1, (4, 8, 2)))
    frames_left = np.abs(locate(future.frames[:, -1]) - goal).max(-1) / SPEED
    cost = LearnedDistance(DISTANCE, draw(goal))(future)
    assert np.allclose(cost, frames_left, atol=0.1)
    # Less is left for the future that ends nearer.
    assert int(cost.argmin()) == int(frames_left.argmin())


def test_mpc_with_the_learned_distance_goes_to_the_goal(imagination):
    start = locate(imagination.past_frames[-1])
    goal = draw(start + np.array([4 * SPEED, -4 * SPEED]))
    planner = MPCPlanner(SOLVER, partial(LearnedDistance, DISTANCE), MPCConfig(horizon=4))
    actions = planner.plan(imagination, goal, seed=0).actions
    assert (actions * [1, -1] > 0.8).all()


def test_the_learned_distance_leads_the_latents_to_the_goal():
    """Its gradient reaches the imagined latents, and only where it is asked for."""
    model = PointMassWorldModel()
    torch.manual_seed(0)
    head = TemporalDistance(3, SIZE, hidden_size=8, num_blocks=1)
    objective = LearnedDistance(head, draw(np.array([0.7, 0.3])))
    latents = torch.rand(2, 3, 4, SIZE, SIZE, requires_grad=True)
    cost = objective(Imagination(latents, torch.zeros(1), model))
    (gradient,) = torch.autograd.grad(cost.sum(), latents)
    assert (gradient[:, :, -1].flatten(1).norm(dim=1) > 0).all()
    assert not gradient[:, :, :-1].any()
    assert not objective(Imagination(latents.detach(), torch.zeros(1), model)).requires_grad


def test_learned_success_is_the_surprise_at_the_last_frame(imagination):
    future = imagination.imagine(np.random.default_rng(0).uniform(-1, 1, (4, 8, 2)))
    log_odds = -locate(future.frames[:, -1])[:, 0]  # of having gone to the left
    expected = -np.log(1 / (1 + np.exp(-log_odds)))
    assert np.allclose(LearnedSuccess(HEAD, "left")(future), expected, atol=1e-5)


def test_mpc_with_the_learned_success_goes_where_it_is_told(imagination):
    planner = MPCPlanner(SOLVER, partial(LearnedSuccess, HEAD), MPCConfig(horizon=4))
    assert (planner.plan(imagination, "down", seed=0).actions[:, 1] > 0.8).all()


def test_the_magnitude_counts_in_half_ranges_from_the_middle():
    # Ranges of 6 and 2 about 1 and 0.
    future = acted(torch.tensor([[[4.0, 0.0], [1.0, -1.0]]]), [-2.0, -1.0], [4.0, 1.0])
    assert ActionMagnitude()(future).tolist() == pytest.approx([(1 + 0 + 0 + 1) / 4])
    reference = np.array([[4, 0], [4, 0]])
    assert ActionMagnitude(reference)(future).tolist() == pytest.approx([(0 + 0 + 1 + 1) / 4])


def test_the_change_counts_from_step_to_step():
    actions = torch.tensor([[[0.0], [3.0], [1.5]], [[2.0], [2.0], [2.0]]])
    future = acted(actions, [-3.0], [3.0])
    assert ActionChange()(future).tolist() == pytest.approx([(1 + 0.25) / 2, 0])
    assert ActionChange()(acted(actions[:, :1], [-3.0], [3.0])).tolist() == [0, 0]


@pytest.mark.parametrize("objective", [ActionMagnitude(), ActionChange()])
def test_what_actions_cost_has_its_gradient(objective):
    actions = torch.tensor([[[0.5, 0.0], [0.2, -0.4]]], requires_grad=True)

    def cost(actions):
        return objective(acted(actions, [-1.0, -1.0], [1.0, 1.0])).sum()

    (gradient,) = torch.autograd.grad(cost(actions), actions)
    for index in np.ndindex(2, 2):
        step = torch.zeros_like(actions)
        step[0][index] = 1e-2
        still = actions.detach()
        slope = (cost(still + step) - cost(still - step)) / 2e-2
        assert float(gradient[0][index]) == pytest.approx(float(slope), abs=1e-4)


def test_what_actions_cost_is_weighed_against_what_they_bring(imagination):
    def objective(goal):
        return WeightedSum((1.0, TaskReward(HEAD, goal)), (4.0, ActionMagnitude()))

    plan = MPCPlanner(SOLVER, objective, MPCConfig(horizon=4, action_block=1)).plan(
        imagination, "up", seed=0
    )
    # -10 SPEED a for each of 4 steps, and 4 times the mean of a**2 over 8 numbers: at a = 0.5.
    assert plan.actions[:, 1] == pytest.approx(-10 * SPEED * np.ones(4), abs=0.15)
    assert plan.actions[:, 0] == pytest.approx(np.zeros(4), abs=0.15)


def test_a_weighted_sum_adds_up(imagination):
    future = imagination.imagine(np.random.default_rng(0).uniform(-1, 1, (4, 8, 2)))
    goal = draw(np.array([0.7, 0.3]))
    first, second = GoalImage(goal, space="pixel"), ActionChange()
    third = LearnedDistance(DISTANCE, goal)
    total = WeightedSum((2.0, first), (-0.5, second), (0.1, third))(future)
    parts = 2 * first(future) - 0.5 * second(future) + 0.1 * third(future)
    assert torch.allclose(total, parts)


def test_futures_without_actions_and_other_references_are_refused(imagination):
    video = imagination.imagine(instruction="left")
    for objective in (ActionMagnitude(), ActionChange()):
        with pytest.raises(SfvgenError, match="imagined without actions"):
            objective(video)
    future = imagination.imagine(np.zeros((1, 8, 2)))
    with pytest.raises(SfvgenError, match=r"shape \(8, 2\).* got \(4, 2\)"):
        ActionMagnitude(np.zeros((4, 2)))(future)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_bad_sums_are_refused(weight):
    with pytest.raises(SfvgenError, match="weight of ActionChange must be finite"):
        WeightedSum((weight, ActionChange()))
    with pytest.raises(SfvgenError, match="at least one pair"):
        WeightedSum()
    with pytest.raises(SfvgenError, match="each term is a pair of a weight and an objective"):
        WeightedSum([(weight, ActionChange())])


def test_a_sum_takes_any_function_and_names_the_one_that_gives_no_costs(imagination):
    future = imagination.imagine(np.random.default_rng(0).uniform(-1, 1, (4, 8, 2)))

    def ranks(futures):
        return np.arange(len(futures), dtype=np.float32)

    total = WeightedSum((2.0, ranks), (1.0, ActionChange()))(future)
    assert torch.allclose(total, 2.0 * torch.arange(4) + ActionChange()(future))
    with pytest.raises(SfvgenError, match=r"function must give a cost for each of 4 .* \(4, 1\)"):
        WeightedSum((1.0, lambda futures: torch.zeros(len(futures), 1)))(future)


def test_a_term_that_gradients_would_pass_over_is_refused():
    def height(future):
        return future.latents.sum(dim=1)

    def constant(future):
        return torch.zeros(len(future.latents))

    descended = SimpleNamespace(latents=torch.ones(3, 2, requires_grad=True))
    assert WeightedSum((0.5, height))(descended).tolist() == [1, 1, 1]
    with pytest.raises(SfvgenError, match="the costs of function carry no gradient"):
        WeightedSum((0.5, height), (1000.0, constant))(descended)
    searched = SimpleNamespace(latents=torch.ones(3, 2))
    assert WeightedSum((0.5, height), (1000.0, constant))(searched).tolist() == [1, 1, 1]
