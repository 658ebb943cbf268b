"""A Stable-Baselines3 model acts as itself behind our interface."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from sfvgen_policies import Policy
from sfvgen_policies.sb3 import SB3Policy

sb3 = pytest.importorskip("stable_baselines3")


class CameraEnv(gym.Env[Any, Any]):
    """Random pictures, plain or in a Dict."""

    action_space = gym.spaces.Box(-2, 2, (3,), np.float32)

    def __init__(self, as_dict: bool) -> None:
        picture = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(image=picture) if as_dict else picture

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture(scope="module")
def model() -> Any:
    return sb3.PPO("CnnPolicy", CameraEnv(as_dict=False), n_steps=2, batch_size=2, seed=0)


def test_the_picture_of_a_dict_is_what_the_model_sees(model: Any) -> None:
    env = CameraEnv(as_dict=True)
    policy = SB3Policy(env, model)
    assert isinstance(policy, Policy)
    policy.reset(0)
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        action = policy.act(observation, "go")
        expected, _ = model.predict(observation["image"], deterministic=True)
        np.testing.assert_array_equal(action, expected)
        np.testing.assert_array_equal(action, policy.act(observation["image"], ""))
        assert env.action_space.contains(action)


def test_drawn_actions_repeat_with_the_seed(model: Any) -> None:
    env = CameraEnv(as_dict=False)
    observation, _ = env.reset(seed=0)
    policy = SB3Policy(env, model, deterministic=False)

    def roll(seed: int) -> np.ndarray:
        policy.reset(seed)
        return np.stack([policy.act(observation) for _ in range(3)])

    assert np.array_equal(roll(1), roll(1))
    assert not np.array_equal(roll(1), roll(2))
    assert not np.array_equal(roll(1)[0], roll(1)[1])


class CountingModel:
    """A recurrent model whose action is the number of steps since the episode's beginning."""

    observation_space = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    action_space = CameraEnv.action_space

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, **_: Any
    ) -> tuple[np.ndarray, Any]:
        count = 0 if episode_start[0] else state + 1
        return np.full(3, count, np.float32), count


def test_recurrent_models_keep_their_state_within_an_episode() -> None:
    policy = SB3Policy(CameraEnv(as_dict=False), CountingModel())
    for _ in range(2):
        policy.reset(0)
        assert [policy.act(None)[0] for _ in range(3)] == [0, 1, 2]


def test_what_does_not_fit_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=r"trained on the actions Box\(-2.0, 2.0, \(3,\)"):
        SB3Policy(gym.make("Pendulum-v1"), model)
    policy = SB3Policy(CameraEnv(as_dict=False), model)
    with pytest.raises(ValueError, match="a dict without 'image'; it has state"):
        policy.act({"state": np.zeros(3)})
    with pytest.raises(ValueError, match="observation shape"):
        policy.act(np.zeros((20, 20, 3), np.uint8))


def test_other_observations_are_refused_at_once(model: Any) -> None:
    encoded = gym.spaces.Dict(latents=gym.spaces.Box(-np.inf, np.inf, (4, 8, 8)))
    blind = CameraEnv(as_dict=False)
    blind.observation_space = gym.spaces.Box(-1, 1, (7,))
    learnt = CountingModel()
    for env, wanted in (
        (CameraEnv(as_dict=True), encoded),
        (CameraEnv(as_dict=False), encoded),
        (blind, model.observation_space),
        (CameraEnv(as_dict=True), gym.spaces.Box(0, 255, (20, 20, 3), np.uint8)),
        # Pictures that were divided by 255 in training.
        (CameraEnv(as_dict=False), gym.spaces.Box(0, 1, model.observation_space.shape)),
    ):
        learnt.observation_space = wanted
        with pytest.raises(ValueError, match=r"trained on the observations .* use EncodedPolicy"):
            SB3Policy(env, learnt)
    learnt.observation_space = encoded
    SB3Policy(blind, learnt, observation_space=encoded)


def test_an_env_of_double_precision_gets_actions_within_its_bounds(model: Any) -> None:
    env = CameraEnv(as_dict=False)
    env.action_space = gym.spaces.Box(-2, 2, (3,), np.float64)
    observation, _ = env.reset(seed=0)
    policy = SB3Policy(env, model, deterministic=False)
    policy.reset(0)
    for _ in range(20):
        assert env.action_space.contains(policy.act(observation))
