"""Subgoals one after another, in a world where it is known when each is achieved."""

import numpy as np
import pytest

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning import (
    ChatEndpoint,
    LanguageModelSubgoals,
    ListedSubgoals,
    PlanningPolicy,
    SeenAchieved,
    SubgoalPolicy,
    SubgoalRecord,
    VideoPlanner,
)
from tests.planning.chat_server import ChatServer, completion
from tests.point_mass import (
    SPEED,
    PointMassEnv,
    PointMassInverseDynamics,
    PointMassOutcomeHead,
    PointMassWorldModel,
    draw,
)

GOAL = "bottom right corner"
CORNER = ListedSubgoals({GOAL: ["right", "down"]})
FAR = 0.75
# The head's log-odds are the way made.
SEEN = SeenAchieved(PointMassOutcomeHead(), 1 / (1 + np.exp(-FAR)))


@pytest.fixture
def imagination():
    env = ImaginationWrapper(PointMassEnv(), PointMassWorldModel())
    env.reset(seed=0)
    return env


def planning(imagination):
    return PlanningPolicy(imagination, VideoPlanner(PointMassInverseDynamics()))


def run(imagination, policy, num_steps, goal=GOAL):
    """Positions ``(num_steps + 1, 2)``, the start included."""
    imagination.reset(seed=0)
    policy.reset(seed=0)
    positions = [imagination.unwrapped.position]
    for _ in range(num_steps):
        imagination.step(policy.act(None, goal))
        positions.append(imagination.unwrapped.position)
    return np.array(positions)


def put(imagination, x):
    """Somebody moves the blob."""
    imagination.unwrapped.position = np.float32([x, 0.5])
    imagination.live_episode.observe(imagination.render())


def test_each_subgoal_is_followed_until_two_frames_show_it_achieved(imagination):
    policy = SubgoalPolicy(planning(imagination), CORNER, SEEN)
    positions = run(imagination, policy, 18)
    assert policy.is_done
    right, down = policy.records
    assert (right.instruction, down.instruction) == ("right", "down")
    assert right.is_achieved
    assert down.is_achieved
    for record, axis in ((right, 0), (down, 1)):
        *_, third_last, second_last, last = positions[: record.step + 1, axis]
        assert third_last < FAR + 0.01
        assert min(second_last, last) > FAR - 0.01
    moves = np.diff(positions, axis=0) / SPEED
    assert moves[: right.step] == pytest.approx(np.tile([1, 0], (right.step, 1)), abs=0.15)
    count = down.step - right.step
    assert moves[right.step : down.step] == pytest.approx(np.tile([0, 1], (count, 1)), abs=0.15)
    # It stays with the last one.
    assert policy.policy.plans[-1].goal == "down"


def test_a_single_frame_does_not_show_success(imagination):
    put(imagination, 0.5)
    put(imagination, 0.9)
    assert not SEEN(imagination, "right")
    put(imagination, 0.9)
    assert SEEN(imagination, "right")
    assert not SEEN(imagination, "down")


def test_what_is_achieved_already_is_passed_over(imagination):
    policy = SubgoalPolicy(planning(imagination), CORNER, lambda _, text: text == "right")
    policy.act(None, GOAL)
    assert policy.records == [SubgoalRecord("right", 0, is_achieved=True)]
    assert [record.goal for record in policy.policy.plans] == ["down"]
    assert not policy.is_done


def test_the_environment_s_own_word_counts(imagination):
    def is_achieved(imagination, instruction):
        return imagination.unwrapped.position[["right", "down"].index(instruction)] > 0.7

    policy = SubgoalPolicy(planning(imagination), CORNER, is_achieved)
    positions = run(imagination, policy, 18)
    for axis, record in enumerate(policy.records):
        assert record.step == np.argmax(positions[:, axis] > 0.7)
    assert policy.is_done


def test_a_subgoal_ends_when_its_steps_are_spent(imagination):
    policy = SubgoalPolicy(planning(imagination), CORNER, lambda *_: False, max_steps=3)
    positions = run(imagination, policy, 8)
    assert policy.records == [
        SubgoalRecord("right", 3, is_achieved=False),
        SubgoalRecord("down", 6, is_achieved=False),
    ]
    way = positions[6] - positions[0]
    assert way == pytest.approx([3 * SPEED, 3 * SPEED], abs=0.02)


def test_a_changed_goal_and_a_new_episode_are_split_anew(imagination):
    asked = []

    def subgoals(goal, frame):
        asked.append(goal)
        assert np.array_equal(frame, draw(imagination.unwrapped.position))
        return [goal]

    policy = SubgoalPolicy(planning(imagination), subgoals, lambda *_: False)
    for goal in ("left", "left", "up"):
        imagination.step(policy.act(None, goal))
    assert asked == ["left", "up"]
    assert [record.goal for record in policy.policy.plans] == ["left", "up"]
    imagination.reset(seed=1)
    policy.reset()
    assert not policy.is_done
    policy.act(None, "up")
    assert asked == ["left", "up", "up"]
    # Where nobody tells the policy, too.
    imagination.reset(seed=2)
    policy.act(None, "up")
    assert asked == ["left", "up", "up", "up"]
    assert not policy.records


def test_two_frames_are_judged_however_few_the_model_sees(imagination, monkeypatch):
    one = property(lambda self: self.live_episode.last_frames(1))
    monkeypatch.setattr(ImaginationWrapper, "past_frames", one)  # As under some memories.
    seen = []
    for _ in range(2):
        put(imagination, 0.95)
        seen.append(SEEN(imagination, "right"))
    assert seen == [False, True]


def test_a_fixed_goal_takes_the_place_of_the_instruction(imagination):
    policy = SubgoalPolicy(planning(imagination), CORNER, SEEN, goal=GOAL)
    policy.act(None, "left")
    assert policy.instructions == ["right", "down"]


def test_a_language_model_leads_a_planner_to_the_goal(imagination, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with ChatServer([completion('["right", "down"]')]) as server:
        subgoals = LanguageModelSubgoals(
            ChatEndpoint(server.base_url, "stand-in"), ["left", "right", "up", "down"]
        )
        policy = SubgoalPolicy(planning(imagination), subgoals, SEEN)
        positions = run(imagination, policy, 18)
    assert len(server.requests) == 1
    assert policy.is_done
    assert (positions[-1] > FAR - 0.01).all()


def test_what_can_t_work_is_refused(imagination):
    fixed = PlanningPolicy(imagination, VideoPlanner(PointMassInverseDynamics()), goal="left")
    with pytest.raises(SfvgenError, match="fixed goal"):
        SubgoalPolicy(fixed, CORNER, SEEN)
    with pytest.raises(SfvgenError, match="max_steps must be at least 1"):
        SubgoalPolicy(planning(imagination), CORNER, SEEN, max_steps=0)
    with pytest.raises(SfvgenError, match="no subgoals at all"):
        SubgoalPolicy(planning(imagination), lambda *_: [], SEEN).act(None, GOAL)
    with pytest.raises(SfvgenError, match="no outcome head"):
        SeenAchieved(None)
    for threshold in (0, 1.1):
        with pytest.raises(SfvgenError, match="success_threshold"):
            SeenAchieved(PointMassOutcomeHead(), threshold)
