"""Policies by name, and the random one."""

from __future__ import annotations

import importlib

import gymnasium as gym
import numpy as np
import pytest
from sfvgen_policies import POLICIES, Policy, make_policy
from sfvgen_policies.random import CorrelatedNoise, RandomPolicy


@pytest.fixture
def pendulum() -> gym.Env:
    return gym.make("Pendulum-v1")


def test_policies_by_name_and_by_class(pendulum: gym.Env) -> None:
    for spec in ("random", "sfvgen_policies.random:RandomPolicy"):
        policy = make_policy(spec, pendulum, std=0.5)
        assert isinstance(policy, RandomPolicy)
        assert isinstance(policy, Policy)


@pytest.mark.parametrize(
    ("spec", "kwargs", "message"),
    [
        ("nobody", {}, "'nobody' is unknown; choose from expert"),
        ("", {}, "is unknown"),
        (":RandomPolicy", {}, "is unknown"),
        ("no_such_module:Class", {}, "cannot be imported: No module named 'no_such_module'"),
        ("sfvgen_policies.random:Nobody", {}, "cannot be imported"),
        ("random", {"speed": 3}, "cannot be built with {'speed': 3}"),
        ("collections:Counter", {}, "cannot be built|is no policy"),
        ("timed", {"policy": 3}, "The policy 3 is unknown"),
        ("random", {"std": -1}, "standard deviation is -1; use a number from 0 on"),
        ("random", {"std": float("inf")}, "standard deviation is inf"),
        ("random", {"smoothness": 1.0}, r"smoothness=1.0 is out of range"),
        ("expert", {}, "only knows sfvgen/TabletopReturn-v0"),
    ],
)
def test_bad_policies_end_in_one_sentence(
    pendulum: gym.Env, spec: str, kwargs: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(spec, pendulum, **kwargs)


def test_random_policy_needs_a_bounded_box() -> None:
    with pytest.raises(ValueError, match="needs a bounded Box action space, not Discrete"):
        make_policy("random", gym.make("CartPole-v1"))


def test_registered_names_are_classes_that_can_be_imported() -> None:
    assert {"expert", "random"} <= set(POLICIES)
    for path in POLICIES.values():
        module, name = path.split(":")
        assert isinstance(getattr(importlib.import_module(module), name), type)


def test_random_actions_fill_the_space_and_repeat_with_the_seed(pendulum: gym.Env) -> None:
    policy = make_policy("random", pendulum, std=1.0)

    def roll(seed: int) -> np.ndarray:
        policy.reset(seed)
        return np.array([policy.act(None, "") for _ in range(300)])

    first = roll(1)
    assert first.dtype == pendulum.action_space.dtype
    assert all(pendulum.action_space.contains(action) for action in first)
    assert first.min() < -1.5
    assert first.max() > 1.5
    np.testing.assert_array_equal(first, roll(1))
    assert not np.array_equal(first, roll(2))


@pytest.mark.parametrize("smoothness", [0.0, 0.5, 0.9])
def test_noise_has_the_moments_of_a_stationary_ar1_process(smoothness: float) -> None:
    noise = CorrelatedNoise(2000, 0.3, smoothness)
    noise.reset(0)
    first = noise.sample()
    draws = np.array([first, *(noise.sample() for _ in range(3))])
    np.testing.assert_allclose(draws.std(axis=1), 0.3, rtol=0.1)
    for lag in (1, 2, 3):
        correlation = np.corrcoef(draws[0], draws[lag])[0, 1]
        assert correlation == pytest.approx(smoothness**lag, abs=0.08)
