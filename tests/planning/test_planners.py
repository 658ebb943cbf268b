"""Planners on the point mass, whose best plans are known in closed form."""

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from sfvgen_policies.inverse_dynamics import InverseDynamics

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import ImaginationWrapper, step_batch
from sfvgen_planner.planning import (
    CEM,
    ICEM,
    MPPI,
    ActionMagnitude,
    CEMConfig,
    GoalImage,
    LearnedDistance,
    LearnedSuccess,
    MPCConfig,
    MPCPlanner,
    Plan,
    PlanningPolicy,
    PolicyConfig,
    SubgoalPlanner,
    TaskReward,
    VideoPlanConfig,
    VideoPlanner,
    WeightedSum,
    act_batch,
)
from sfvgen_planner.planning.policy import departure
from tests.point_mass import (
    DIRECTIONS,
    SPEED,
    PointMassEnv,
    PointMassInverseDynamics,
    PointMassOutcomeHead,
    PointMassWorldModel,
    draw,
    locate,
)

SOLVER = CEM(CEMConfig(num_samples=64, num_elites=8, num_iterations=8))


def test_mpc_with_the_task_reward_goes_where_it_is_told(imagination):
    objective = partial(TaskReward, PointMassOutcomeHead())
    planner = MPCPlanner(SOLVER, objective, MPCConfig(horizon=4))
    plan = planner.plan(imagination, "up", seed=0)
    assert (plan.actions[:, 1] < -0.8).all()
    assert plan.cost == pytest.approx(10 * SPEED * plan.actions[:, 1].sum(), abs=0.2)


@pytest.mark.parametrize("objective", [GoalImage(np.zeros((64, 64, 3), np.uint8)), None, 3])
def test_an_objective_in_place_of_what_makes_one_is_refused(objective):
    with pytest.raises(SfvgenError, match="objective must make one of a goal"):
        MPCPlanner(SOLVER, objective)


@pytest.mark.parametrize("space", ["latent", "pixel"])
def test_mpc_reaches_a_goal_within_reach(imagination, space):
    start = imagination.unwrapped.position
    goal = start + np.array([0.25, -0.2])
    planner = MPCPlanner(SOLVER, partial(GoalImage, space=space))
    plan = planner.plan(imagination, draw(goal), seed=0)
    assert plan.actions.shape == (8, 2)
    # Any actions that add up to the way are optimal.
    assert start + SPEED * plan.actions.sum(0) == pytest.approx(goal, abs=0.02)
    assert locate(plan.frames[-1]) == pytest.approx(goal, abs=0.02)
    assert plan.cost < 0.05
    for action in plan.actions:
        imagination.step(action)
    assert imagination.unwrapped.position == pytest.approx(goal, abs=0.02)


@pytest.mark.parametrize("solver", [ICEM(), MPPI()])
def test_mpc_works_with_other_solvers_as_they_come(imagination, solver):
    start = imagination.unwrapped.position
    goal = start + np.array([0.25, -0.2])
    plan = MPCPlanner(solver).plan(imagination, draw(goal), seed=0)
    assert start + SPEED * plan.actions.sum(0) == pytest.approx(goal, abs=0.05)


def test_mpc_goes_as_far_as_the_action_space_allows(imagination):
    start = imagination.unwrapped.position
    planner = MPCPlanner(SOLVER, config=MPCConfig(horizon=2, action_block=1))
    plan = planner.plan(imagination, draw(start + np.array([0.2, 0.0])), seed=0)
    assert plan.actions[:, 0] == pytest.approx([1, 1], abs=0.05)
    assert plan.actions[:, 1].sum() == pytest.approx(0, abs=0.05)


def test_mpc_holds_actions_for_a_block_and_is_repeatable(imagination):
    goal = draw(np.array([0.7, 0.3]))
    planner = MPCPlanner(config=MPCConfig(horizon=6, action_block=3))
    plan = planner.plan(imagination, goal, seed=4)
    assert np.array_equal(plan.actions, np.repeat(plan.actions[::3], 3, axis=0))
    planner.reset()
    assert np.array_equal(planner.plan(imagination, goal, seed=4).actions, plan.actions)


def test_mpc_starts_from_the_shifted_previous_plan(imagination):
    starts = []

    class Spy(CEM):
        def solve(self, cost_fn, action_space, horizon, seed=None, initial_mean=None):
            starts.append(initial_mean)
            return super().solve(cost_fn, action_space, horizon, seed, initial_mean)

    planner = MPCPlanner(Spy(), config=MPCConfig(horizon=4, action_block=1))
    goal = draw(np.array([0.7, 0.3]))
    plan = planner.plan(imagination, goal, seed=0)
    imagination.step(plan.actions[0])
    planner.plan(imagination, goal, seed=0)
    planner.reset()
    planner.plan(imagination, goal, seed=0)
    imagination.reset(seed=1)
    planner.plan(imagination, goal, seed=0)
    assert starts[0] is None
    assert torch.equal(starts[1], torch.tensor([*plan.actions[1:].tolist(), [0.0, 0.0]]))
    assert starts[2] is None
    assert starts[3] is None, "a plan for another episode"


def test_video_planner_reads_the_actions_off_the_video(imagination):
    planner = VideoPlanner(PointMassInverseDynamics(), VideoPlanConfig(num_frames=3))
    plan = planner.plan(imagination, "left", seed=0)
    assert plan.actions == pytest.approx(np.tile(DIRECTIONS["left"], (3, 1)), abs=0.1)
    expected = imagination.unwrapped.position - [3 * SPEED, 0]
    assert locate(plan.frames[-1]) == pytest.approx(expected, abs=0.01)
    with pytest.raises(SfvgenError, match="instruction"):
        planner.plan(imagination, np.zeros((4, 4, 3), np.uint8))


def test_video_planner_takes_the_video_that_the_outcome_head_judges_best():
    imagination = ImaginationWrapper(PointMassEnv(), PointMassWorldModel(noise=0.5))
    imagination.reset(seed=0)
    config = VideoPlanConfig(num_samples=6, num_frames=5)
    planner = VideoPlanner(PointMassInverseDynamics(), config, PointMassOutcomeHead())
    plan = planner.plan(imagination, "left", seed=3)
    videos = imagination.imagine(instruction="left", num_samples=6, num_frames=5, seed=3)
    left = -locate(videos.frames)[..., 0]
    # The best moment of a video is the best mean of two neighbouring frames.
    best = ((left[:, 1:] + left[:, :-1]) / 2).max(axis=1)
    assert np.array_equal(plan.frames, videos.frames[best.argmax()])
    assert plan.diagnostics["scores"] == pytest.approx(best, abs=1e-6)
    assert plan.cost == pytest.approx(-best.max(), abs=1e-6)


def test_without_an_outcome_head_one_video_is_imagined(imagination):
    plan = VideoPlanner(PointMassInverseDynamics()).plan(imagination, "left", seed=0)
    assert imagination.world_model.batch_sizes == [1]
    assert len(plan) == imagination.world_model.config.num_future_frames
    assert plan.cost is None


def run(env, policy, num_steps):
    observation, info = env.reset(seed=0)
    policy.reset(seed=0)
    for _ in range(num_steps):
        observation, _, _, _, info = env.step(policy.act(observation, info["instruction"]))


def planned_at(policy):
    return [record.step for record in policy.plans]


def test_policy_plans_again_after_a_chunk_and_on_a_new_instruction(imagination):
    policy = PlanningPolicy(imagination, VideoPlanner(PointMassInverseDynamics()))
    run(imagination, policy, 13)
    # The instruction changes from "right" to "down" at step 4; a chunk has 8 frames.
    assert planned_at(policy) == [0, 4, 12]
    assert [record.goal for record in policy.plans] == ["right", "down", "down"]
    start = PointMassEnv().reset(seed=0)[0]
    assert imagination.unwrapped.position[0] == pytest.approx(start[0] + 4 * SPEED, abs=0.03)


def test_policy_executes_part_of_a_plan_when_asked(imagination):
    planner = VideoPlanner(PointMassInverseDynamics())
    policy = PlanningPolicy(imagination, planner, PolicyConfig(num_executed_steps=3))
    run(imagination, policy, 7)
    assert planned_at(policy) == [0, 3, 4, 7][: len(policy.plans)]


def test_policy_plans_again_when_the_world_departs_from_the_imagined(imagination):
    planner = VideoPlanner(PointMassInverseDynamics())
    careful = PlanningPolicy(
        imagination, planner, PolicyConfig(max_departure=15, min_executed_steps=1)
    )
    patient = PlanningPolicy(
        imagination, planner, PolicyConfig(max_departure=15, min_executed_steps=3)
    )
    stubborn = PlanningPolicy(imagination, planner, PolicyConfig(max_departure=None))
    for policy, expected in ((careful, [0, 2]), (patient, [0, 3]), (stubborn, [0])):
        observation, _ = imagination.reset(seed=0)
        policy.reset(seed=0)
        for step in range(4):
            observation = imagination.step(policy.act(observation, "right"))[0]
            if step == 1:
                imagination.unwrapped.position += [0, 0.3]  # somebody pushes it
                imagination.live_episode.observe(imagination.render())
        assert planned_at(policy) == expected


def squares(*corners):
    """A grey table with a white square of 6x6 pixels at each corner."""
    picture = np.full((64, 64, 3), 100, np.uint8)
    for row, column in corners:
        picture[row : row + 6, column : column + 6] = 230
    return picture


def test_a_small_thing_in_another_place_is_a_departure():
    imagined = squares((10, 10), (40, 40))
    for corner in ((10, 18), (20, 10), (0, 58), (50, 3)):
        moved = squares(corner, (40, 40))
        # Its contrast, with none of the picture around it.
        assert departure(moved, imagined) == departure(imagined, moved) == 130
        assert departure(moved, imagined) > PolicyConfig().max_departure
        # All of the picture together would hardly tell.
        assert np.sqrt(np.square(moved.astype(float) - imagined).mean()) < 20
    assert departure(squares((40, 40)), imagined) > 100  # it is gone


def test_a_pixel_off_and_noise_are_no_departure():
    imagined = squares((10, 10))
    assert departure(squares((11, 9)), imagined) == 0
    noise = np.random.default_rng(0).normal(0, 25, imagined.shape)
    noisy = np.clip(imagined + noise, 0, 255).astype(np.uint8)
    assert 15 < departure(noisy, imagined) < 40
    assert departure(imagined, imagined) == 0


def test_policy_plans_again_as_it_comes_when_something_moved(imagination):
    planner = VideoPlanner(PointMassInverseDynamics())
    policy = PlanningPolicy(imagination, planner)
    stubborn = PlanningPolicy(imagination, planner, PolicyConfig(max_departure=None))
    for own, pushed, expected in ((policy, 0.3, [0, 5]), (policy, 0, [0]), (stubborn, 0.3, [0])):
        observation, _ = imagination.reset(seed=0)
        own.reset(seed=0)
        for step in range(7):
            observation = imagination.step(own.act(observation, "right"))[0]
            if step == 4:
                imagination.unwrapped.position += np.float32([0, pushed])
                imagination.live_episode.observe(imagination.render())
        assert planned_at(own) == expected


def test_policy_closes_the_loop_on_the_real_frame(imagination):
    # A small push is no reason to plan again, but the next action makes up for it.
    policy = PlanningPolicy(
        imagination, VideoPlanner(PointMassInverseDynamics()), PolicyConfig(max_departure=None)
    )
    observation, _ = imagination.reset(seed=0)
    policy.reset(seed=0)
    observation = imagination.step(policy.act(observation, "right"))[0]
    imagination.unwrapped.position += np.float32([0, 0.025])
    imagination.live_episode.observe(imagination.render())
    assert policy.act(observation, "right") == pytest.approx([1, -0.5], abs=0.1)


def test_policy_with_a_fixed_goal_ignores_the_instruction(imagination):
    goal = imagination.unwrapped.position + np.array([0.2, 0.2])
    policy = PlanningPolicy(imagination, MPCPlanner(SOLVER), goal=draw(goal))
    run(imagination, policy, 8)
    assert planned_at(policy) == [0]
    assert imagination.unwrapped.position == pytest.approx(goal, abs=0.03)


@pytest.mark.parametrize(
    ("config", "bad"),
    [
        (MPCConfig, {"horizon": 7}),
        (MPCConfig, {"horizon": 0}),
        (MPCConfig, {"action_block": 0}),
        (MPCConfig, {"num_inference_steps": 0}),
        (VideoPlanConfig, {"num_frames": 0}),
        (VideoPlanConfig, {"num_inference_steps": 0}),
        (PolicyConfig, {"num_executed_steps": 0}),
        (PolicyConfig, {"max_departure": 0}),
        (PolicyConfig, {"min_executed_steps": 0}),
    ],
)
def test_bad_settings_are_refused(config, bad):
    with pytest.raises(SfvgenError, match=next(iter(bad))):
        config(**bad)


def test_mpc_starts_where_it_is_told(imagination):
    # A search of hardly any spread stays at its start: the horizon's part of it, then rest.
    still = CEM(CEMConfig(8, 2, 1, initial_std=1e-4, min_std=0, num_kept_elites=1))
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 2)).astype(np.float32)
    goal = draw(np.array([0.7, 0.3]))
    for horizon, expected in ((4, actions[:4]), (8, [*actions, [0, 0], [0, 0]])):
        planner = MPCPlanner(still, config=MPCConfig(horizon, action_block=1))
        plan = planner.plan(imagination, goal, seed=0, start=actions)
        assert plan.actions == pytest.approx(np.array(expected), abs=1e-3)
    planner = MPCPlanner(still, config=MPCConfig(4, action_block=2))
    plan = planner.plan(imagination, goal, seed=0, start=actions)
    assert plan.actions[::2] == pytest.approx((actions[0:4:2] + actions[1:4:2]) / 2, abs=1e-3)


@pytest.mark.parametrize("num_frames", [3, 6])
def test_subgoal_planner_goes_where_the_video_is_at_the_horizon(imagination, num_frames):
    video = VideoPlanner(PointMassInverseDynamics(), VideoPlanConfig(num_frames=num_frames))
    planner = SubgoalPlanner(video, MPCPlanner(SOLVER, config=MPCConfig(horizon=4)))
    start = imagination.unwrapped.position
    plan = planner.plan(imagination, "left", seed=0)
    way = SPEED * min(num_frames, 4)
    assert len(plan) == 4
    assert start + SPEED * plan.actions.sum(0) == pytest.approx(start - [way, 0], abs=0.02)
    assert plan.diagnostics.keys() >= {"scores", "best_costs"}
    with pytest.raises(SfvgenError, match="instruction"):
        planner.plan(imagination, np.zeros((4, 4, 3), np.uint8))


def test_subgoal_planner_begins_with_the_actions_of_the_video(imagination):
    still = CEM(CEMConfig(8, 2, 1, initial_std=1e-4, min_std=0, num_kept_elites=1))
    search = MPCPlanner(still, config=MPCConfig(horizon=4))
    planner = SubgoalPlanner(VideoPlanner(PointMassInverseDynamics()), search)
    plan = planner.plan(imagination, "down", seed=0)
    assert plan.actions == pytest.approx(np.tile(DIRECTIONS["down"], (4, 1)), abs=0.1)
    assert planner.action(plan, 1, imagination.past_frames[-1]) is not None


TEXTS = ("left", "up", "right")


@pytest.fixture
def several():
    """Three moments, one of them the start of its episode, in a model with noise."""
    model = PointMassWorldModel(noise=0.4)
    envs = [ImaginationWrapper(PointMassEnv(), model) for _ in TEXTS]
    for row, env in enumerate(envs):
        env.reset(seed=row)
        for _ in range((6, 0, 4)[row]):
            env.step(np.float32([0.3, -0.2]))
    model.batch_sizes.clear()
    return envs


def new_planner(kind):
    head = PointMassOutcomeHead()
    video = VideoPlanner(PointMassInverseDynamics(), VideoPlanConfig(4, num_frames=5), head)
    small = CEM(CEMConfig(num_samples=16, num_elites=4, num_iterations=3))
    if kind == "video":
        return video
    if kind == "search":
        return MPCPlanner(small, partial(TaskReward, head), MPCConfig(horizon=4))
    return SubgoalPlanner(video, MPCPlanner(small, config=MPCConfig(horizon=4)))


def assert_equal_plans(found, expected):
    assert found.actions == pytest.approx(expected.actions, abs=1e-5)
    assert np.array_equal(found.frames, expected.frames)
    assert found.cost == pytest.approx(expected.cost, abs=1e-5)
    assert found.diagnostics.keys() == expected.diagnostics.keys()
    for name, value in expected.diagnostics.items():
        assert found.diagnostics[name] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "num_calls"), [("video", 1), ("search", 3 + 1), ("subgoal", 1 + 3 + 1)]
)
def test_plans_made_together_are_those_made_alone(several, kind, num_calls):
    planner, alone = new_planner(kind), [new_planner(kind) for _ in TEXTS]
    plans = planner.plan_batch(several, TEXTS, [5, 6, 7])
    # Each call is one for the two old moments and one for the young.
    assert len(several[0].world_model.batch_sizes) == 2 * num_calls
    for row in range(3):
        assert_equal_plans(plans[row], alone[row].plan(several[row], TEXTS[row], seed=5 + row))
    # Each search goes on from its own last plan, unless that is forgotten.
    for env, plan in zip(several, plans, strict=True):
        env.step(plan.actions[0])
    planner.reset(several[1])
    alone[1].reset()
    plans = planner.plan_batch(several[::-1], TEXTS[::-1], [1, 1, 1])[::-1]
    for row in range(3):
        assert_equal_plans(plans[row], alone[row].plan(several[row], TEXTS[row], seed=1))


@pytest.mark.parametrize("num_frames", [3, 5])
def test_a_subgoal_is_made_of_the_image_the_instruction_and_the_videos_actions(
    imagination, num_frames
):
    video_planner = VideoPlanner(PointMassInverseDynamics(), VideoPlanConfig(num_frames=num_frames))
    video = video_planner.plan(imagination, "left", seed=0)
    made = []

    def planned(*weights):
        def objective(image, instruction, video_actions):
            made.append((image, instruction, video_actions))
            terms = (
                GoalImage(image),
                LearnedSuccess(PointMassOutcomeHead(), {"left": "down"}[instruction]),
                ActionMagnitude(reference=video_actions / 2),
            )
            return WeightedSum(*zip(weights, terms, strict=True))

        search = MPCPlanner(SOLVER, config=MPCConfig(horizon=4, action_block=1))
        plan = SubgoalPlanner(video_planner, search, objective).plan(imagination, "left", seed=0)
        return plan.actions

    # Each of them alone, and all together.
    way = SPEED * min(num_frames, 4)
    assert SPEED * planned(1, 0, 0).sum(axis=0) == pytest.approx([-way, 0], abs=0.02)
    assert (planned(0, 1, 0)[:, 1] > 0.8).all()
    shown = np.zeros((4, 2))
    shown[:num_frames] = video.actions[:4]
    assert planned(0, 0, 1) == pytest.approx(shown / 2, abs=0.15)
    together = planned(0, 1, 0.2).mean(axis=0)
    assert together[0] < -0.2
    assert together[1] > 0.2
    for image, instruction, actions in made:
        assert np.array_equal(image, video.frames[:4][-1])
        assert instruction == "left"
        assert np.array_equal(actions, shown.astype(np.float32))


def test_a_solver_of_one_problem_plans_for_one_environment(several):
    class OneByOne:
        solve = SOLVER.solve

    planner = MPCPlanner(OneByOne(), partial(TaskReward, PointMassOutcomeHead()))
    assert len(planner.plan(several[0], "left", seed=0)) == 8
    with pytest.raises(SfvgenError, match="OneByOne solves for one environment at a time"):
        planner.plan_batch(several, TEXTS, [0, 1, 2])


def test_policies_act_together_as_they_act_alone():
    """Plans are made together by those that need one at that step."""
    made = []

    class Spy(VideoPlanner):
        def plan_batch(self, imaginations, goals, seeds):
            made.append([envs.index(imagination) for imagination in imaginations])
            return super().plan_batch(imaginations, goals, seeds)

    model = PointMassWorldModel(noise=0.02)
    envs = [ImaginationWrapper(PointMassEnv(), model) for _ in range(3)]
    planner = Spy(PointMassInverseDynamics())
    policies = [
        PlanningPolicy(env, planner, PolicyConfig(count, max_departure=None))
        for env, count in zip(envs, (4, 6, 4), strict=True)
    ]
    infos = []
    for row, (env, policy) in enumerate(zip(envs, policies, strict=True)):
        infos.append(env.reset(seed=row)[1])
        policy.reset(seed=row)
    for _ in range(12):
        actions = act_batch(policies, [info["instruction"] for info in infos])
        infos = [result[4] for result in step_batch(envs, actions)]
    # The instruction changes at step 4.
    assert made == [[0, 1, 2], [0, 1, 2], [0, 2], [1]]
    for row, policy in enumerate(policies):
        env = ImaginationWrapper(PointMassEnv(), PointMassWorldModel(noise=0.02))
        lone = PlanningPolicy(env, VideoPlanner(PointMassInverseDynamics()), policy.config)
        observation, info = env.reset(seed=row)
        lone.reset(seed=row)
        for _ in range(12):
            observation, _, _, _, info = env.step(lone.act(observation, info["instruction"]))
        assert envs[row].unwrapped.position == pytest.approx(env.unwrapped.position, abs=1e-4)
        assert planned_at(policy) == planned_at(lone)
    # Plans that were made together share the time that they took.
    assert policies[0].plans[0].seconds == policies[1].plans[0].seconds > 0
    with pytest.raises(SfvgenError, match="must share one planner"):
        act_batch([policies[0], lone], ["left", "left"])


def test_any_planner_plans_for_policies_that_act_together(several):
    class Still:
        """Has the interface of a planner for one environment."""

        def reset(self, imagination=None):
            pass

        def plan(self, imagination, goal, seed=None):
            frames = np.repeat(imagination.past_frames[-1:], 8, axis=0)
            return Plan(np.full((8, 2), float(TEXTS.index(goal)) / 4), frames)

        def action(self, plan, step, frame):
            return plan.actions[step]

    planner = Still()
    policies = [PlanningPolicy(env, planner) for env in several]
    assert np.array_equal(act_batch(policies, TEXTS), [[0, 0], [0.25, 0.25], [0.5, 0.5]])


def test_policies_act_together_only_with_an_instruction_each(imagination):
    policy = PlanningPolicy(imagination, VideoPlanner(PointMassInverseDynamics()))
    with pytest.raises(SfvgenError, match="at least one policy"):
        act_batch([], [])
    with pytest.raises(SfvgenError, match="1 policies need as many instructions, got 2"):
        act_batch([policy], ["left", "right"])


def test_a_start_of_other_actions_is_refused(imagination):
    with pytest.raises(SfvgenError, match=r"start must be actions of the shape \(T, 2\)"):
        MPCPlanner().plan(imagination, draw(np.full(2, 0.5)), start=np.zeros((3, 5)))


def test_inverse_dynamics_of_other_actions_is_refused(imagination):
    planner = VideoPlanner(InverseDynamics(action_low=[-1] * 3, action_high=[1] * 3, image_size=32))
    with pytest.raises(SfvgenError, match="of 3 numbers, but the world model takes 2"):
        planner.plan(imagination, "left")


def test_inverse_dynamics_stays_within_bounds_that_rounding_would_leave():
    low, high = np.float32([-0.41, -1.38]), np.float32([0.56, -0.05])
    inverse = InverseDynamics(action_low=low.tolist(), action_high=high.tolist(), image_size=32)
    inverse.head[-1].bias.data.fill_(50)
    picture = draw(np.full((1, 2), 0.5))
    assert np.array_equal(inverse.predict(picture, picture)[0], high)


def test_no_plan_outlives_its_episode(imagination):
    """Though the policy and the planner are not told of the reset."""
    planner = MPCPlanner(SOLVER, config=MPCConfig(horizon=4))
    policy = PlanningPolicy(imagination, planner, goal=draw(np.array([0.9, 0.5])))
    policy.act(None, "")
    imagination.reset(seed=1)
    policy.goal = draw(np.array([0.1, 0.5]))
    assert policy.act(None, "")[0] < 0
    assert len(policy.plans) == 2


def test_a_wrapper_around_the_imagination_is_refused(imagination):
    with pytest.raises(SfvgenError, match="TimeLimit, inside it"):
        PlanningPolicy(TimeLimit(imagination, 5), MPCPlanner(SOLVER))


@pytest.mark.parametrize("objective", [LearnedSuccess, TaskReward, LearnedDistance])
def test_an_objective_without_its_head_is_refused(objective, imagination):
    goal = draw(np.array([0.1, 0.5])) if objective is LearnedDistance else "up"
    with pytest.raises(SfvgenError, match="this model has none"):
        MPCPlanner(SOLVER, partial(objective, None)).plan(imagination, goal, seed=0)
