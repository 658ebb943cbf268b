"""Stable-Baselines3 learns in imagined worlds."""

import itertools
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import EnvStarts, ObservationEncoder, Start, WorldModelVectorEnv
from sfvgen_planner.world_model import tiny_world_model
from tests.point_mass import DIRECTIONS, PointMassEnv, PointMassWorldModel


def point_mass(mode=AutoresetMode.SAME_STEP, **kwargs):
    model = PointMassWorldModel(0.02)
    return WorldModelVectorEnv(
        model, EnvStarts(PointMassEnv()), 2, horizon=3, autoreset_mode=mode, **kwargs
    )


def test_ended_episodes_are_told_as_sb3_does():
    pytest.importorskip("stable_baselines3")
    from sfvgen_planner.imagination.sb3 import SB3VecEnv

    envs, plain = SB3VecEnv(point_mass(num_samples=2)), point_mass(num_samples=2)
    envs.seed(3)
    assert np.array_equal(envs.reset(), plain.reset(seed=3)[0])
    assert envs.reset_infos == [{"instruction": "right"}] * 2
    action = np.ones((2, 2), np.float32)
    for step in range(4):
        found, expected = envs.step(action), plain.step(action)
        assert np.array_equal(found[0], expected[0])
        done = step == 2
        assert found[2].tolist() == [done, done]
        for row, info in enumerate(found[3]):
            assert info["TimeLimit.truncated"] == done
            assert info["disagreement"] > 0
            assert ("terminal_observation" in info) == done
            if done:
                last = expected[4]["final_obs"][row]
                assert np.array_equal(info["terminal_observation"], last)
                assert not np.array_equal(last, found[0][row])


class ToldOptions(gym.Wrapper):
    """Tells in its infos which options an episode began with."""

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed)
        return observation, info | {"told": str(options)}


def test_options_reach_the_environments_once_and_spaces_are_those_of_one():
    pytest.importorskip("stable_baselines3")
    from sfvgen_planner.imagination.sb3 import SB3VecEnv

    mode = AutoresetMode.SAME_STEP
    envs = SB3VecEnv(SyncVectorEnv([lambda: ToldOptions(PointMassEnv())] * 2, autoreset_mode=mode))
    assert envs.get_attr("action_space") == [envs.action_space] * 2
    assert envs.get_attr("observation_space", 1) == [envs.observation_space]
    assert envs.get_attr("num_envs") == [2, 2]
    envs.set_options({"gravity": 1})
    envs.reset()
    assert [info["told"] for info in envs.reset_infos] == ["{'gravity': 1}"] * 2
    envs.reset()
    assert [info["told"] for info in envs.reset_infos] == ["None"] * 2
    envs.set_options([{"gravity": 1}, {}])
    with pytest.raises(SfvgenError, match="same options"):
        envs.reset()


def test_other_autoreset_modes_are_refused():
    pytest.importorskip("stable_baselines3")
    from sfvgen_planner.imagination.sb3 import SB3VecEnv

    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
        with pytest.raises(SfvgenError, match="SAME_STEP"):
            SB3VecEnv(point_mass(mode))


@pytest.mark.parametrize("is_monitored", [False, True])
def test_pictures_and_instructions_are_encoded_before_and_after_an_episodes_end(is_monitored):
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.vec_env import VecMonitor

    from sfvgen_planner.imagination.sb3 import EncodedVecEnv, SB3VecEnv

    real, names = EnvStarts(PointMassEnv()), itertools.cycle(DIRECTIONS)

    def starts(rng):
        return Start(real(rng).frames, next(names))

    model = PointMassWorldModel()
    plain = SB3VecEnv(
        WorldModelVectorEnv(model, starts, 2, horizon=3, autoreset_mode=AutoresetMode.SAME_STEP)
    )
    plain.seed(3)
    # SB3's wrappers keep to themselves what environments told at their reset.
    inner = VecMonitor(plain) if is_monitored else plain
    envs = EncodedVecEnv(inner, ObservationEncoder(model))
    seen = []
    step = plain.step_wait

    def watched():
        frames, rewards, dones, infos = step()
        seen.append((frames, [info.get("terminal_observation") for info in infos]))
        return frames, rewards, dones, infos

    plain.step_wait = watched
    first = envs.reset()
    assert first["instruction"].tolist() == [[-1, 0], [1, 0]]
    for number in range(4):
        observations, _, dones, infos = envs.step(np.ones((2, 2), np.float32))
        frames, last = seen[-1]
        # The model's latents are the pictures themselves.
        assert observations["latents"] == pytest.approx(frames.transpose(0, 3, 1, 2) / 255)
        ended = number == 2
        told = [[0, -1], [0, 1]] if number >= 2 else [[-1, 0], [1, 0]]
        assert observations["instruction"].tolist() == told
        assert dones.tolist() == [ended, ended]
        for row, info in enumerate(infos):
            assert ("terminal_observation" in info) == ended
            if ended:
                assert info["terminal_observation"] in envs.observation_space
                picture = info["terminal_observation"]["latents"]
                assert picture == pytest.approx(last[row].transpose(2, 0, 1) / 255)
                assert (
                    info["terminal_observation"]["instruction"].tolist() == [[-1, 0], [1, 0]][row]
                )


@pytest.mark.parametrize("name", ["PPO", "SAC"])
def test_sb3_learns(name):
    algorithms = pytest.importorskip("stable_baselines3")
    from sfvgen_planner.imagination.sb3 import SB3VecEnv

    envs = WorldModelVectorEnv(
        tiny_world_model(action_size=2),
        EnvStarts(PointMassEnv(), image_size=64),
        2,
        horizon=3,
        autoreset_mode=AutoresetMode.SAME_STEP,
        render_mode="rgb_array",
    )
    sizes = {"PPO": {"n_steps": 4, "n_epochs": 1}, "SAC": {"learning_starts": 4, "buffer_size": 20}}
    policy = {"features_extractor_kwargs": {"features_dim": 8}, "net_arch": [8]}
    agent = getattr(algorithms, name)(
        "CnnPolicy", SB3VecEnv(envs), batch_size=4, policy_kwargs=policy, **sizes[name]
    )
    before = [p.clone() for p in agent.policy.parameters()]
    agent.learn(8)
    assert [image.shape for image in envs.render()] == [(64, 64, 3)] * 2
    assert len(agent.env.get_images()) == 2
    assert any((p != q).any() for p, q in zip(agent.policy.parameters(), before, strict=True))


def test_a_missing_sb3_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "sfvgen_planner.imagination.sb3", raising=False)
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    with pytest.raises(SfvgenError, match=r"sfvgen-planner\[sb3\]"):
        import sfvgen_planner.imagination.sb3  # noqa: F401


def test_gymnasiums_statistics_reach_sb3():
    pytest.importorskip("stable_baselines3")
    from sfvgen_planner.imagination.sb3 import SB3VecEnv

    envs = SB3VecEnv(RecordEpisodeStatistics(point_mass()))
    envs.reset()
    for _ in range(3):
        _, _, dones, infos = envs.step(np.zeros((2, 2), np.float32))
    assert dones.all()
    for info in infos:
        assert (info["episode"]["r"], info["episode"]["l"]) == (0, 3)


def test_pictures_are_encoded_and_nothing_else():
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.vec_env import DummyVecEnv

    from sfvgen_planner.imagination.sb3 import EncodedVecEnv

    with pytest.raises(SfvgenError, match=r"pictures of the shape \(64, 64, 3\), uint8, got Box"):
        EncodedVecEnv(DummyVecEnv([PointMassEnv]), ObservationEncoder(tiny_world_model()))


def test_what_learnt_from_encoded_pictures_acts_in_an_environment():
    algorithms = pytest.importorskip("stable_baselines3")
    from sfvgen_policies import Policy
    from stable_baselines3.common.vec_env import DummyVecEnv

    from sfvgen_planner.imagination.sb3 import EncodedPolicy, EncodedVecEnv, SB3VecEnv

    model = PointMassWorldModel()
    encoder = ObservationEncoder(model)
    sizes = {"buffer_size": 10, "policy_kwargs": {"net_arch": [8]}}
    envs = EncodedVecEnv(SB3VecEnv(point_mass()), encoder)
    agent = algorithms.SAC("MultiInputPolicy", envs, **sizes)
    env = PointMassEnv()
    policy = EncodedPolicy(env, agent, encoder)
    assert isinstance(policy, Policy)
    policy.reset(0)
    observation, _ = env.reset(seed=0)
    shown = encoder(env.render()[None], ["left"])
    expected = agent.predict(shown, deterministic=True)[0][0]
    assert policy.act(observation, "left") == pytest.approx(expected, abs=1e-6)
    assert policy.act(observation, "right") != pytest.approx(expected, abs=1e-6)
    drawn = EncodedPolicy(env, agent, encoder, deterministic=False)
    assert not np.array_equal(drawn.act(observation, "left"), drawn.act(observation, "left"))
    plain = algorithms.SAC("MlpPolicy", DummyVecEnv([PointMassEnv]), **sizes)
    with pytest.raises(SfvgenError, match=r"this encoder shows .* or SB3Policy for a model"):
        EncodedPolicy(env, plain, encoder)
