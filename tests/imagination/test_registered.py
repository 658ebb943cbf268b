"""Imagined worlds by their Gymnasium id, of a tiny checkpoint."""

import sys
import warnings
from unittest.mock import Mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import sfvgen_planner.imagination.env as env_module
from sfvgen_planner.data import Episode, EpisodeStore, StoreSpec
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import EnvStarts, WorldModelEnv, WorldModelVectorEnv
from sfvgen_planner.memory import EpisodicMemory
from sfvgen_planner.world_model import load_world_model, tiny_world_model
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from tests.point_mass import PointMassEnv

ID = "sfvgen/Imagined-v0"
STARTS = "PointMass-v0"


@pytest.fixture(autouse=True)
def _point_mass():
    gym.register(STARTS, entry_point="tests.point_mass:PointMassEnv")
    yield
    del gym.registry[STARTS]


@pytest.fixture
def arguments(tiny_checkpoint):
    return {"model": str(tiny_checkpoint), "env_id": STARTS}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("starts") / "store"
    spec = StoreSpec("Test-v0", 1, (64, 64), (-1.0,) * 4, (1.0,) * 4)
    with EpisodeStore.create(path, spec) as store:
        store.append(
            Episode(
                frames=np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8),
                actions=np.zeros((8, 4), np.float32),
                instructions=["put it away"] * 8,
                rewards=np.zeros(8, np.float32),
                terminated=False,
                truncated=True,
                seed=0,
            )
        )
    return path


def test_gymnasiums_checker_passes_without_a_warning(arguments, monkeypatch):
    monkeypatch.setattr(env_module, "Window", Mock())
    env = gym.make(ID, **arguments, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_sb3s_checker_passes_without_a_warning(arguments):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(gym.make(ID, **arguments).unwrapped)


def test_by_id_is_as_by_hand(arguments, tiny_checkpoint):
    model = load_world_model(tiny_checkpoint)
    starts = EnvStarts(PointMassEnv(), image_size=64)
    action = np.full(4, 0.5, np.float32)
    for made, plain, batch in (
        (
            gym.make(ID, **arguments, horizon=2),
            WorldModelEnv(model, starts, horizon=2),
            action,
        ),
        (
            gym.make_vec(ID, 2, **arguments, horizon=2, autoreset_mode=AutoresetMode.SAME_STEP),
            WorldModelVectorEnv(model, starts, 2, horizon=2, autoreset_mode="SameStep"),
            np.stack([action] * 2),
        ),
    ):
        assert np.array_equal(made.reset(seed=3)[0], plain.reset(seed=3)[0])
        for _ in range(2):
            found, expected = made.step(batch), plain.step(batch)
            for one, other in zip(found[:4], expected[:4], strict=True):
                assert np.array_equal(one, other)
        made.close()
    assert isinstance(made.unwrapped, WorldModelVectorEnv)


def test_memories_by_id_are_those_by_hand(arguments, tiny_checkpoint):
    starts = EnvStarts(PointMassEnv(), image_size=64)
    batch = np.full((2, 4), 0.5, np.float32)
    made = gym.make_vec(ID, 2, **arguments, memory=True)
    model = load_world_model(tiny_checkpoint)
    memory = EpisodicMemory.from_pretrained(model, tiny_checkpoint, num_memories=2)
    plain = WorldModelVectorEnv(model, starts, 2, memory=memory)
    assert np.array_equal(made.reset(seed=3)[0], plain.reset(seed=3)[0])
    for _ in range(2 * model.config.num_future_frames):
        found, expected = made.step(batch), plain.step(batch)
        assert np.array_equal(found[0], expected[0])
    # It has learnt, and no world without a memory shares its model.
    assert list(made.unwrapped.memory.num_writes) == list(memory.num_writes)
    assert min(memory.num_writes) > 0
    alone = gym.make(ID, **arguments, memory=True).unwrapped
    forgetful = gym.make(ID, **arguments).unwrapped
    assert alone._world.memory.num_memories == 1
    assert forgetful._world.memory is None
    models = [alone._world.world_model, forgetful._world.world_model, made.unwrapped.world_model]
    assert len({id(model) for model in models}) == 3


def test_sb3_makes_many_by_id_which_share_their_model(arguments):
    make_vec_env = pytest.importorskip("stable_baselines3.common.env_util").make_vec_env
    envs = make_vec_env(ID, 3, seed=0, env_kwargs={**arguments, "horizon": 2})
    assert envs.reset().shape == (3, 64, 64, 3)
    action = np.zeros((3, 4), np.float32)
    assert [envs.step(action)[2].all() for _ in range(2)] == [False, True]
    models = {id(env.unwrapped._world.world_model) for env in envs.envs}
    assert len(models) == 1
    envs.close()


def test_episodes_begin_in_recorded_data_and_the_checkpoints_head_judges_them(tmp_path, store):
    model = tiny_world_model()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    torch.manual_seed(0)
    head = OutcomeHead(4, 4, hidden_size=8, vocab_size=len(model.tokenizer))
    head.save_pretrained(folder / "outcome_head")
    env = gym.make(ID, model=str(folder), start_data=str(store))
    frame, info = env.reset(seed=0)
    assert (EpisodeStore.open(store).window(0, 0, 9).frames == frame).all(axis=(1, 2, 3)).any()
    assert info["instruction"] == "put it away"
    assert 0 < info["success_probability"] < 1
    unjudged = gym.make(ID, model=str(folder), start_data=str(store), outcome_head=None)
    assert "success_probability" not in unjudged.reset(seed=0)[1]


def test_the_environment_of_the_model_is_the_default(tmp_path):
    model = tiny_world_model()
    model.register_to_config(env_id=STARTS)
    model.save_pretrained(tmp_path / "model")
    env = gym.make(ID, model=str(tmp_path / "model"))
    starts = EnvStarts(PointMassEnv(), image_size=64)
    expected = WorldModelEnv(model, starts).reset(seed=1)[0]
    assert np.array_equal(env.reset(seed=1)[0], expected)


def test_what_is_missing_is_told_in_one_sentence(arguments, store, monkeypatch):
    model = arguments["model"]
    with pytest.raises(SfvgenError, match="no model called nowhere"):
        gym.make(ID, model="nowhere")
    with pytest.raises(SfvgenError, match="give env_id or start_data"):
        gym.make(ID, model=model)
    with pytest.raises(SfvgenError, match="give one of the two"):
        gym.make(ID, **arguments, start_data=str(store))
    with pytest.raises(SfvgenError, match="cannot make the environment 'Nowhere-v0'"):
        gym.make_vec(ID, 2, model=model, env_id="Nowhere-v0")
    for make in (gym.make, lambda *args, **kwargs: gym.make_vec(*args, num_envs=2, **kwargs)):
        with pytest.raises(SfvgenError, match="env_kwargs must be a dict of arguments, got 'x'"):
            make(ID, **arguments, env_kwargs="x")
    memory = EpisodicMemory(tiny_world_model())
    with pytest.raises(SfvgenError, match="memory is True or False here"):
        gym.make(ID, **arguments, memory=memory)
    closed = []
    monkeypatch.setattr(PointMassEnv, "close", lambda env: closed.append(env))
    with pytest.raises(SfvgenError, match="horizon must be at least 1"):
        gym.make(ID, **arguments, horizon=0)
    with pytest.raises(SfvgenError, match="horizon must be at least 1"):
        gym.make_vec(ID, 2, **arguments, horizon=0)
    assert len(closed) == 2
    for device in ("gpu", "meta"):
        with pytest.raises(SfvgenError, match=f"the device '{device}' cannot be used"):
            gym.make(ID, **arguments, device=device)


def test_a_model_that_is_trained_on_is_loaded_anew(tmp_path):
    envs, frames = [], []
    for seed in (0, 1):
        model = tiny_world_model(seed=seed, action_size=2)
        model.save_pretrained(tmp_path / "model")
        # The first is still in use.
        envs.append(gym.make(ID, model=str(tmp_path / "model"), env_id=STARTS))
        envs[-1].reset(seed=0)
        frames.append(envs[-1].step(np.zeros(2, np.float32))[0])
        by_hand = WorldModelEnv(model, EnvStarts(PointMassEnv(), image_size=64))
        by_hand.reset(seed=0)
        assert np.array_equal(by_hand.step(np.zeros(2, np.float32))[0], frames[-1])
    assert not np.array_equal(*frames)


def test_the_id_may_name_the_module_that_registers_it(arguments, monkeypatch):
    monkeypatch.delitem(gym.registry, ID)
    monkeypatch.delitem(sys.modules, "sfvgen_planner.imagination")
    gym.make(f"sfvgen_planner.imagination:{ID}", **arguments).close()
