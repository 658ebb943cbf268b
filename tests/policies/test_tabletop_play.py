"""Play must make and break contact, as the simulator sees it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sfvgen_envs  # noqa: F401  registers the environment
from sfvgen_policies import make_policy


@pytest.fixture
def env() -> gym.Env[Any, Any]:
    return gym.make("sfvgen/TabletopReturn-v0", level=4, recall="none", image_size=16)


def play(env: gym.Env[Any, Any], seed: int, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Actions, and whether any cube was held after each."""
    policy = make_policy("play", env, **kwargs)
    observation, _ = env.reset(seed=seed)
    policy.reset(seed)
    table: Any = env.unwrapped
    actions, held, terminated = [], [], False
    while not terminated:
        actions.append(policy.act(observation, ""))
        observation, _, terminated, _, _ = env.step(actions[-1])
        held.append(any(table.is_grasped(colour) for colour in table.plan.cubes))
    return np.array(actions), np.array(held)


def test_cubes_are_grasped_dropped_and_missed(env: gym.Env[Any, Any]) -> None:
    held = [play(env, seed)[1] for seed in range(4)]
    share = np.concatenate(held).mean()
    assert 0.05 < share < 0.6
    assert sum(np.sum(one[:-1] & ~one[1:]) for one in held) >= 4
    sure = np.concatenate([play(env, seed, miss=0.0)[1] for seed in range(4)]).mean()
    wide = np.concatenate([play(env, seed, miss=0.1)[1] for seed in range(4)]).mean()
    assert wide < sure


def test_actions_fit_the_space_and_follow_from_the_seed(env: gym.Env[Any, Any]) -> None:
    first, again, other = (play(env, seed)[0] for seed in (3, 3, 4))
    assert all(env.action_space.contains(action) for action in first)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[:20], other[:20])


def test_only_the_tabletop_and_a_miss_of_0_or_more(env: gym.Env[Any, Any]) -> None:
    with pytest.raises(ValueError, match="only knows sfvgen/TabletopReturn-v0"):
        make_policy("play", gym.make("Pendulum-v1"))
    with pytest.raises(ValueError, match="miss=-1 is out of range"):
        make_policy("play", env, miss=-1)
