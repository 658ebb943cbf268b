"""The imagination wrapper around the real simulator, with the real (if unskilled) model."""

import warnings

import mujoco
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.memory import EpisodicMemory, MemoryConfig
from sfvgen_planner.planning import CEM, CEMConfig, MPCConfig, MPCPlanner
from sfvgen_planner.world_model import tiny_world_model

ENV_ID = "sfvgen/TabletopReturn-v0"


@pytest.fixture(scope="module")
def model():
    return tiny_world_model()


@pytest.fixture
def memory(model):
    memory = EpisodicMemory(model, MemoryConfig(rank=2, num_steps=1))
    yield memory
    memory.detach()


@pytest.fixture
def wrapper(model, memory):
    env = ImaginationWrapper(make_env(ENV_ID, {"level": 2}), model, memory)
    yield env
    env.close()


def physics(env):
    simulator = env.unwrapped
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(simulator.model, kind))
    mujoco.mj_getState(simulator.model, simulator.data, state, kind)
    return state


def test_passes_gymnasiums_checker(wrapper):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The checker prefers bare envs; a wrapper is what is checked here.
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version")
        check_env(wrapper)


def test_imagining_and_planning_change_nothing_in_the_simulator(wrapper):
    wrapper.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(9):
        wrapper.step(rng.uniform(-1, 1, 4).astype(np.float32))
    assert len(wrapper.memory_writes) == 1
    before, state = physics(wrapper), wrapper.unwrapped.get_state()
    wrapper.imagine(rng.uniform(-1, 1, (3, 8, 4)))
    goal = wrapper.imagine(instruction="return the red cube", num_samples=2).frames[0, -1]
    planner = MPCPlanner(
        CEM(CEMConfig(num_samples=4, num_elites=2, num_iterations=1, num_kept_elites=0)),
        config=MPCConfig(num_inference_steps=1),
    )
    planner.plan(wrapper, goal, seed=0)
    after = wrapper.unwrapped.get_state()
    assert np.array_equal(before, physics(wrapper))
    assert np.array_equal(state.physics, after.physics)
    assert state.rng == after.rng


def test_an_imagining_wrapper_replays_the_bare_env_bit_for_bit(wrapper):
    bare = make_env(ENV_ID, {"level": 2})
    actions = np.random.default_rng(1).uniform(-1, 1, (10, 4)).astype(np.float32)
    expected = [bare.reset(seed=7)[0]["image"]] + [bare.step(a)[0]["image"] for a in actions]
    found = [wrapper.reset(seed=7)[0]["image"]]
    for action in actions:
        wrapper.imagine(action[None], num_inference_steps=1)
        found.append(wrapper.step(action)[0]["image"])
    assert np.array_equal(expected, found)
    assert np.array_equal(physics(bare), physics(wrapper))
    assert np.array_equal(wrapper.past_frames, expected[-4:])
    bare.close()


def test_the_memory_is_imagined_with_until_the_episode_ends(wrapper, memory):
    wrapper.reset(seed=0)
    fresh = wrapper.imagine(instruction="return the red cube", seed=1).latents
    for _ in range(8):
        wrapper.step(np.zeros(4, np.float32))
    remembered = wrapper.imagine(instruction="return the red cube", seed=1).latents
    memory.enabled = False
    forgotten = wrapper.imagine(instruction="return the red cube", seed=1).latents
    memory.enabled = True
    assert not torch.equal(remembered, forgotten)
    wrapper.reset(seed=0)
    assert torch.equal(wrapper.imagine(instruction="return the red cube", seed=1).latents, fresh)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((8, 3)), "4 numbers"),
        (np.full((8, 4), np.nan), "finite"),
        (np.full((2, 8, 4), 1.5), "between"),
    ],
)
def test_bad_actions_are_refused(wrapper, actions, message):
    wrapper.reset(seed=0)
    with pytest.raises(SfvgenError, match=message):
        wrapper.imagine(actions)


def test_the_image_size_of_the_env_may_differ_from_the_models(model):
    env = ImaginationWrapper(make_env(ENV_ID, {"image_size": 128}), model)
    env.reset(seed=0)
    assert env.past_frames.shape == (1, 64, 64, 3)
    env.close()
