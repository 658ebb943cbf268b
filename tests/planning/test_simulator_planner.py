"""The planner that searches in the simulator, on the point mass whose optimum is known."""

import gymnasium as gym
import numpy as np
import pytest

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning import (
    CEM,
    CEMConfig,
    PlanningPolicy,
    PolicyConfig,
    SearchConfig,
    SimulatorPlanner,
)
from tests.point_mass import SIZE, SPEED, PointMassEnv, PointMassWorldModel, draw

SOLVER = CEM(CEMConfig(num_samples=64, num_elites=8, num_iterations=8))


class Simulator(PointMassEnv):
    """The point mass, which can be set to a state and pays for the way to the right."""

    def get_state(self):
        return self.position.copy(), self.step_count

    def set_state(self, state):
        self.position, self.step_count = state[0].copy(), state[1]

    def advance(self, action):
        before = float(self.position[0])
        observation, _, *rest = super().step(action)
        return float(observation[0]) - before, *rest

    def step(self, action):
        reward, *rest = self.advance(action)
        return self.position.copy(), reward, *rest


def imagination_of(env):
    wrapper = ImaginationWrapper(env, PointMassWorldModel())
    wrapper.reset(seed=0)
    return wrapper


@pytest.fixture
def imagination():
    return imagination_of(Simulator())


def test_it_finds_the_way_of_the_highest_reward(imagination):
    planner = SimulatorPlanner(solver=SOLVER, config=SearchConfig(horizon=4, action_block=2))
    plan = planner.plan(imagination, "right", seed=0)
    assert (plan.actions[:, 0] > 0.9).all()
    assert plan.cost == pytest.approx(-SPEED * plan.actions[:, 0].sum(), abs=1e-5)
    assert np.array_equal(plan.actions[::2], plan.actions[1::2])


def test_it_follows_the_cost_it_is_given(imagination):
    target = imagination.unwrapped.position + np.array([-0.1, 0.15])

    def distance(simulator, reward, info):
        return float(np.linalg.norm(simulator.position - target))

    planner = SimulatorPlanner(distance, SOLVER, SearchConfig(horizon=4, action_block=1))
    plan = planner.plan(imagination, "right", seed=0)
    for action in plan.actions:
        imagination.step(action)
    assert imagination.unwrapped.position == pytest.approx(target, abs=0.02)


def test_what_it_shows_is_what_happens_and_the_present_is_left_alone(imagination):
    imagination.step(np.array([0.5, -0.5]))
    before = imagination.unwrapped.get_state()
    plan = SimulatorPlanner(solver=SOLVER, config=SearchConfig(4)).plan(imagination, "right", 0)
    after = imagination.unwrapped.get_state()
    assert np.array_equal(before[0], after[0])
    assert before[1] == after[1] == imagination.num_steps
    for action, frame in zip(plan.actions, plan.frames, strict=True):
        imagination.step(action)
        assert np.array_equal(imagination.past_frames[-1], frame)


def test_the_present_survives_a_broken_cost(imagination):
    before = imagination.unwrapped.get_state()

    def broken(simulator, reward, info):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        SimulatorPlanner(broken).plan(imagination, "right", seed=0)
    assert np.array_equal(imagination.unwrapped.get_state()[0], before[0])


def test_a_future_ends_with_its_instruction_or_with_the_episode(imagination):
    # "right" is followed by "down" at step 4, and an episode of 3 steps ends before that.
    assert len(SimulatorPlanner().plan(imagination, "right", seed=0)) == 4
    goal_image = imagination.past_frames[-1]
    assert len(SimulatorPlanner().plan(imagination, goal_image, seed=0)) == 8
    short = imagination_of(Simulator(num_steps=3))
    assert len(SimulatorPlanner().plan(short, "right", seed=0)) == 3


def test_it_runs_as_a_policy_that_plans_again(imagination):
    planner = SimulatorPlanner(solver=SOLVER, config=SearchConfig(horizon=4))
    policy = PlanningPolicy(imagination, planner, PolicyConfig(num_executed_steps=2))
    observation, info = imagination.reset(seed=0)
    policy.reset(seed=0)
    start = imagination.unwrapped.position.copy()
    for _ in range(4):
        action = policy.act(observation, info["instruction"])
        observation, _, _, _, info = imagination.step(action)
    assert [record.step for record in policy.plans] == [0, 2]
    assert imagination.unwrapped.position[0] > start[0] + 3.6 * SPEED


def test_a_time_limit_counts_the_steps_that_are_taken_alone():
    imagination = imagination_of(
        gym.wrappers.RecordEpisodeStatistics(gym.wrappers.TimeLimit(Simulator(), 10))
    )
    planner = SimulatorPlanner(solver=SOLVER, config=SearchConfig(horizon=4))
    policy = PlanningPolicy(imagination, planner, PolicyConfig(num_executed_steps=2))
    observation, info = imagination.reset(seed=0)
    policy.reset(seed=0)
    truncated, num_steps = False, 0
    while not truncated:
        action = policy.act(observation, info["instruction"])
        observation, _, _, truncated, info = imagination.step(action)
        num_steps += 1
    assert num_steps == info["episode"]["l"] == 10
    assert len(policy.plans) == 5


def test_it_sees_what_wrappers_make_of_an_observation():
    space = gym.spaces.Dict(image=gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8))
    upside_down = gym.wrappers.TransformObservation(
        Simulator(render_mode=None), lambda position: {"image": draw(position)[::-1]}, space
    )
    imagination = imagination_of(upside_down)
    plan = SimulatorPlanner(solver=SOLVER, config=SearchConfig(4)).plan(imagination, "right", 0)
    for action, frame in zip(plan.actions, plan.frames, strict=True):
        imagination.step(action)
        assert np.array_equal(imagination.past_frames[-1], frame)


def test_an_environment_without_states_or_with_longer_steps_is_refused(imagination):
    with pytest.raises(SfvgenError, match=r"needs get_state\(\)"):
        SimulatorPlanner().plan(imagination_of(PointMassEnv()), "right", seed=0)
    imagination.world_model.config.frame_skip = 2
    with pytest.raises(SfvgenError, match="frame_skip=2"):
        SimulatorPlanner().plan(imagination, "right", seed=0)


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda env: gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1)), "Rescale"),
        (lambda env: gym.wrappers.TransformReward(env, lambda reward: -reward), "TransformReward"),
        (gym.wrappers.NormalizeReward, "NormalizeReward"),
    ],
)
def test_wrappers_that_the_search_would_not_see_are_refused(wrap, name):
    with pytest.raises(SfvgenError, match=f"{name}.* changes actions or rewards"):
        SimulatorPlanner(solver=SOLVER).plan(imagination_of(wrap(Simulator())), "right")
