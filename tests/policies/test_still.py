"""Policies that stand still, always or for a part of the episode."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from sfvgen_policies import Policy, make_policy


class OffCentreEnv(gym.Env):
    """Its bounds exclude zero in the second number."""

    action_space = gym.spaces.Box(np.float32([-1, 0.5]), np.float32([1, 2]))


def test_still_is_zero_within_the_bounds() -> None:
    policy = make_policy("still", OffCentreEnv())
    assert isinstance(policy, Policy)
    policy.reset(0)
    action = policy.act(None, "go")
    assert action.tolist() == [0, 0.5]
    action[:] = 1
    assert policy.act(None, "go").tolist() == [0, 0.5]
    with pytest.raises(ValueError, match="needs a Box action space, not Discrete"):
        make_policy("still", gym.make("CartPole-v1"))


@pytest.mark.parametrize(("begin", "end"), [(0, None), (2, None), (0, 3), (2, 3), (2, 2)])
def test_a_timed_policy_acts_in_its_steps_alone(begin: int, end: int | None) -> None:
    env = gym.make("Pendulum-v1")
    steps = [begin <= step < (5 if end is None else end) for step in range(5)]
    other = make_policy("random", env)
    other.reset(3)
    expected = [other.act(None, "")[0] if acts else 0.0 for acts in steps]
    policy = make_policy("timed", env, policy="random", begin=begin, end=end)
    for _ in range(2):  # each episode counts its steps anew
        policy.reset(3)
        assert [policy.act(None, "")[0] for _ in steps] == expected


def test_steps_out_of_range_are_refused() -> None:
    env = gym.make("Pendulum-v1")
    for steps in ({"begin": -1}, {"begin": 3, "end": 2}):
        with pytest.raises(ValueError, match="use 0 <= begin <= end"):
            make_policy("timed", env, policy="random", **steps)
    with pytest.raises(ValueError, match="'nobody' is unknown"):
        make_policy("timed", env, policy="nobody")
