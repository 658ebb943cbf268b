"""The imagination wrapper on a world whose future is known."""

import copy
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import Autoreset, MaxAndSkipObservation

from sfvgen_planner.data import FrameSkip
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import (
    EnvStarts,
    ImaginationWrapper,
    WorldModelEnv,
    imagine_batch,
    step_batch,
)
from tests.point_mass import (
    SIZE,
    SPEED,
    PointMassEnv,
    PointMassWorldModel,
    RecordingMemory,
    draw,
    locate,
)


@pytest.fixture
def wrapper():
    model = PointMassWorldModel()
    env = ImaginationWrapper(PointMassEnv(), model, RecordingMemory(model), measure_writes=False)
    env.reset(seed=3)
    return env


def test_imagined_frames_follow_the_actions(wrapper):
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (5, 6, 2)).astype(np.float32)
    imagined = wrapper.imagine(actions)
    expected = wrapper.unwrapped.position + SPEED * actions.cumsum(axis=1)
    assert imagined.frames.shape == (5, 6, SIZE, SIZE, 3)
    assert len(imagined) == 5
    assert imagined.num_frames == 6
    # The blob is read off a picture: good to a fraction of a pixel.
    assert np.abs(locate(imagined.frames) - expected).max() < 0.01
    assert np.array_equal(imagined.last_frames, imagined.frames[:, -1])
    fresh = wrapper.imagine(actions)
    assert np.array_equal(fresh.last_frames, imagined.frames[:, -1])


def test_behaves_as_the_env():
    bare, wrapped = PointMassEnv(), ImaginationWrapper(PointMassEnv(), PointMassWorldModel())
    rng = np.random.default_rng(0)
    for _ in range(2):
        a, b = bare.reset(seed=5), wrapped.reset(seed=5)
        assert np.array_equal(a[0], b[0])
        assert a[1] == b[1]
        for _ in range(10):
            action = rng.uniform(-1, 1, 2).astype(np.float32)
            wrapped.imagine(action[None, None], seed=0)
            a, b = bare.step(action), wrapped.step(action)
            assert np.array_equal(a[0], b[0])
            assert a[1:] == b[1:]
    assert wrapped.action_space == bare.action_space
    assert wrapped.unwrapped.np_random.bit_generator.state == bare.np_random.bit_generator.state


def test_passes_gymnasiums_checker():
    gym.register("PointMass-v0", entry_point="tests.point_mass:PointMassEnv")
    try:
        env = gym.make("PointMass-v0", render_mode="rgb_array", disable_env_checker=True)
        model = PointMassWorldModel()
        wrapped = ImaginationWrapper(env, model, RecordingMemory(model), measure_writes=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # The checker prefers bare envs; a wrapper is what is checked here.
            warnings.filterwarnings("ignore", message=".*different from the unwrapped version")
            check_env(wrapped)
    finally:
        del gym.registry["PointMass-v0"]


def test_imagining_leaves_the_env_alone(wrapper):
    before = wrapper.unwrapped.np_random.bit_generator.state, wrapper.unwrapped.position.copy()
    wrapper.imagine(np.zeros((3, 8, 2), np.float32))
    wrapper.imagine(instruction="left", num_samples=3)
    assert wrapper.unwrapped.np_random.bit_generator.state == before[0]
    assert np.array_equal(wrapper.unwrapped.position, before[1])
    assert wrapper.num_steps == 0


def test_chunks_reach_the_memory_as_they_are_completed(wrapper):
    positions = [wrapper.unwrapped.position.copy()]
    for step in range(20):
        positions.append(wrapper.step(np.float32([0.2 * (-1) ** (step // 5), 0.1]))[0])
        assert len(wrapper.memory_writes) == (step + 1) // 8
    frames = draw(np.stack(positions))
    (first_past, first), (second_past, second) = wrapper.memory.writes
    # f_p = 4 past frames, or as many as the episode has had; f_g = 8 new ones.
    assert np.array_equal(first_past, frames[:1])
    assert np.array_equal(first, frames[1:9])
    assert np.array_equal(second_past, frames[5:9])
    assert np.array_equal(second, frames[9:17])
    assert wrapper.memory_writes == ["write 1", "write 2"]
    assert np.array_equal(wrapper.past_frames, frames[17:21])
    resets = wrapper.memory.num_resets
    wrapper.reset(seed=0)
    assert wrapper.memory.num_resets == resets + 1
    assert wrapper.memory_writes == []
    assert wrapper.past_frames.shape == (1, SIZE, SIZE, 3)


def test_candidates_share_their_noise_and_samples_do_not():
    env = ImaginationWrapper(PointMassEnv(), PointMassWorldModel(noise=0.2))
    env.reset(seed=0)
    action = np.zeros((8, 2), np.float32)
    candidates = env.imagine(np.stack([action] * 3), seed=1).frames
    assert np.array_equal(candidates[0], candidates[1])
    assert np.array_equal(candidates[0], candidates[2])
    samples = env.imagine(action, num_samples=3, seed=1).frames
    assert np.array_equal(samples[0], candidates[0])
    assert not np.array_equal(samples[0], samples[1])
    assert np.array_equal(samples, env.imagine(action, num_samples=3, seed=1).frames)
    assert not np.array_equal(samples, env.imagine(action, num_samples=3, seed=2).frames)
    assert not np.array_equal(env.imagine(action).frames, env.imagine(action).frames)


def test_a_seed_may_be_a_numpy_number_and_of_any_size():
    env = ImaginationWrapper(PointMassEnv(), PointMassWorldModel(noise=0.2))
    env.reset(seed=0)
    assert np.array_equal(env.imagine(seed=np.int64(1)).frames, env.imagine(seed=1).frames)
    entropy = 2**127 + 1
    for seed in (2**64 - 1, 2**64, entropy):
        assert np.array_equal(env.imagine(seed=seed).frames, env.imagine(seed=seed).frames)
    seeds = (0, 1, 2**64 - 1, 2**64, entropy, entropy + 1)
    assert len({env.imagine(seed=seed).frames.tobytes() for seed in seeds}) == len(seeds)


def test_all_candidates_are_one_call():
    model = PointMassWorldModel(noise=0.1)
    env = ImaginationWrapper(PointMassEnv(), model)
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (100, 8, 2)).astype(np.float32)
    for _ in range(2):
        env.imagine(actions, seed=0)
    assert model.batch_sizes == [100, 100]
    # One moment, one encoding, however many calls.
    assert model.num_encoded == 1 + 100 + 100  # the fake model encodes what it draws


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"actions": np.zeros(2)}, r"\(T, A\)"),
        ({"actions": np.zeros((0, 8, 2))}, r"\(T, A\)"),
        ({"actions": np.zeros((2, 8, 2)), "num_samples": 2}, "num_samples"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": True}, "num_samples must be a whole number"),
        ({"num_frames": "a"}, "num_frames must be a whole number"),
        ({"actions": "right"}, "must be numbers"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(wrapper, arguments, message):
    with pytest.raises(SfvgenError, match=message):
        wrapper.imagine(**arguments)
    assert wrapper.world_model.batch_sizes == []


@pytest.mark.parametrize("index", ["a", None, True, -1, 1])
def test_a_memory_that_is_not_there_is_refused(index):
    model = PointMassWorldModel()
    with pytest.raises(SfvgenError, match="memory_index must be "):
        ImaginationWrapper(PointMassEnv(), model, RecordingMemory(model), memory_index=index)


def test_imagining_needs_a_reset():
    env = ImaginationWrapper(PointMassEnv(), PointMassWorldModel())
    with pytest.raises(SfvgenError, match="reset"):
        env.imagine()


class Misfit(PointMassEnv):
    def __init__(self, action_space, render_mode="rgb_array"):
        super().__init__(render_mode)
        self.action_space = action_space


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gym.spaces.Discrete(4), "continuous"),
        (gym.spaces.Box(-np.inf, np.inf, (2,)), "bounded.*put ClipAction around"),
        (gym.spaces.Box(-1, 1, (3,)), r"shape \(3,\)"),
        (gym.spaces.Box(-2, 2, (2,)), "RescaleAction"),
    ],
)
def test_misfitting_action_spaces_are_refused(space, message):
    with pytest.raises(SfvgenError, match=message):
        ImaginationWrapper(Misfit(space), PointMassWorldModel())


PICTURE = gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
POSITION = gym.spaces.Box(0, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("space", "render_mode", "message"),
    [
        (POSITION, None, "no RGB pictures.*render_mode='rgb_array' .* None"),
        (POSITION, "human", "instead of 'human'"),
        (gym.spaces.Dict({"position": POSITION}), None, "no RGB pictures"),
        (gym.spaces.Dict({"image": POSITION}), None, "no RGB pictures"),
        (gym.spaces.Box(0, 255, (3, SIZE, SIZE), np.uint8), None, "no RGB pictures"),
        (gym.spaces.Box(0, 1, (SIZE, SIZE, 3)), None, "no RGB pictures"),
    ],
)
def test_an_env_without_a_camera_is_refused_at_once(space, render_mode, message):
    env = PointMassEnv(render_mode)
    env.observation_space = space
    with pytest.raises(SfvgenError, match=message):
        ImaginationWrapper(env, PointMassWorldModel())


@pytest.mark.parametrize(
    ("space", "render_mode"),
    [
        (PICTURE, None),
        (gym.spaces.Dict({"image": PICTURE}), None),
        (POSITION, "rgb_array"),
        (gym.spaces.Dict({"image": POSITION}), "rgb_array"),
    ],
)
def test_any_kind_of_camera_will_do(space, render_mode):
    class Seeing(gym.ObservationWrapper):
        observation_space = space

        def observation(self, observation):
            picture = draw(observation)
            if space is PICTURE:
                return picture
            # What is called so but is no picture, such as a stack of frames, is not looked at.
            return {"image": observation if space["image"] is POSITION else picture}

    env = PointMassEnv(render_mode)
    imagination = ImaginationWrapper(
        env if space is POSITION else Seeing(env), PointMassWorldModel()
    )
    imagination.reset(seed=0)
    imagination.step(np.ones(2, np.float32))
    assert np.array_equal(imagination.past_frames[-1], draw(env.position))


def test_the_memory_of_another_model_is_refused():
    with pytest.raises(SfvgenError, match="belongs to another world model"):
        ImaginationWrapper(
            PointMassEnv(), PointMassWorldModel(), RecordingMemory(PointMassWorldModel())
        )


def test_frame_skip_must_match_the_models():
    model = PointMassWorldModel()
    model.config.frame_skip = 2
    with pytest.raises(SfvgenError, match="FrameSkip"):
        ImaginationWrapper(PointMassEnv(), model)


@pytest.mark.parametrize("hide", [Autoreset, lambda env: MaxAndSkipObservation(env, 2)])
def test_wrappers_that_hide_resets_or_steps_are_refused_inside(hide):
    with pytest.raises(SfvgenError, match="hides steps or resets"):
        ImaginationWrapper(gym.wrappers.TimeLimit(hide(PointMassEnv()), 6), PointMassWorldModel())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_in_its_own_memory(wrapper, duplicate):
    twin = duplicate(wrapper)
    for env in (wrapper, twin):
        for _ in range(8):
            env.step(np.ones(2, np.float32))
    assert twin.memory is not wrapper.memory
    assert len(twin.memory.writes) == len(wrapper.memory.writes) == 1
    assert np.array_equal(twin.imagine(seed=0).frames, wrapper.imagine(seed=0).frames)


def test_the_specs_of_wrappers_around_it_hold_the_same_weights():
    model = PointMassWorldModel()
    env = PointMassEnv()
    env.spec = gym.envs.registration.EnvSpec("PointMass-v0", entry_point=PointMassEnv)
    outer = gym.wrappers.TimeLimit(ImaginationWrapper(env, model), 5)
    own = {given.name: given.kwargs for given in outer.spec.additional_wrappers}
    assert own["ImaginationWrapper"]["world_model"] is model
    assert outer.spec.max_episode_steps == 5


def test_an_imagined_step_is_as_long_as_its_models_frame():
    model = PointMassWorldModel()
    model.config.frame_skip = 5
    env = ImaginationWrapper(WorldModelEnv(model, EnvStarts(PointMassEnv())), model)
    env.reset(seed=0)
    assert env.imagine(num_frames=2).num_frames == 2
    with pytest.raises(SfvgenError, match="one step of this env makes 10"):
        ImaginationWrapper(FrameSkip(env.env, 2), model)
    with pytest.raises(SfvgenError, match="one step of this env makes 5"):
        ImaginationWrapper(env.env, PointMassWorldModel())


@pytest.mark.parametrize(("max_frames", "limit"), [(None, 8 * (4 + 8)), (10, 10)])
def test_a_horizon_beyond_what_is_trusted_is_refused_before_any_work(max_frames, limit):
    model = PointMassWorldModel()
    env = ImaginationWrapper(PointMassEnv(), model, max_frames=max_frames)
    env.reset(seed=0)
    for arguments in (
        {"num_frames": limit + 1},
        {"actions": np.zeros((limit + 1, 2))},
        {"actions": np.zeros((3, limit + 1, 2))},
    ):
        wanted = f"{limit + 1} frames .* the {limit} .*max_frames={limit + 1}"
        with pytest.raises(SfvgenError, match=wanted):
            env.imagine(**arguments)
    assert model.batch_sizes == []
    assert model.num_encoded == 0
    assert env.imagine(num_frames=limit).num_frames == limit
    bolder = ImaginationWrapper(PointMassEnv(), model, max_frames=limit + 1)
    bolder.reset(seed=0)
    assert bolder.imagine(num_frames=limit + 1).num_frames == limit + 1
    # Together they imagine no further than the most careful one.
    with pytest.raises(SfvgenError, match=f"the {limit} "):
        imagine_batch([bolder, env], num_frames=limit + 1)
    env.reset(seed=0)
    usual = env.imagine(num_samples=1)
    # The window has room for 11; this model's own choice is 8.
    assert usual.latents.shape[2] == (10 if limit == 10 else 8)
    with pytest.raises(SfvgenError, match="max_frames must be at least 1"):
        ImaginationWrapper(PointMassEnv(), model, max_frames=0)


def test_each_imagines_as_far_as_it_is_trusted():
    model = PointMassWorldModel()
    envs = [ImaginationWrapper(PointMassEnv(), model, max_frames=m) for m in (4, None, 4)]
    for env in envs:
        env.reset(seed=0)
    together = imagine_batch(envs, instructions=["right"] * 3, seeds=[1, 2, 3])
    assert [own.num_frames for own in together] == [4, 8, 4]
    for env, own, seed in zip(envs, together, (1, 2, 3), strict=True):
        alone = env.imagine(instruction="right", seed=seed)
        assert np.array_equal(own.frames, alone.frames)


def test_samples_disagree_by_what_the_model_does_not_know():
    env = ImaginationWrapper(PointMassEnv(), PointMassWorldModel(noise=0.02))
    env.reset(seed=0)
    actions = np.zeros((6, 2), np.float32)
    future = env.imagine(actions, num_samples=16)
    found = future.disagreement()
    # The latents are the pictures.
    expected = (future.frames / 255).std(axis=0).reshape(6, -1)
    assert found == pytest.approx(np.sqrt((expected**2).mean(axis=1)), abs=2e-3)
    assert found[-1] > found[0] > 0
    with pytest.raises(SfvgenError, match="num_samples of at least 2"):
        env.imagine(actions).disagreement()
    with pytest.raises(SfvgenError, match="not candidates"):
        env.imagine(np.stack([actions, actions + 1])).disagreement()


@pytest.mark.parametrize(
    "action",
    [
        np.zeros(3),
        np.zeros((1, 2)),
        np.array([0.0, np.nan]),
        0.5,
        "left",
        [[0.0], [0.0, 1.0]],
        torch.zeros(2, requires_grad=True),
    ],
)
def test_an_action_that_cannot_be_remembered_is_not_taken(wrapper, action):
    alone = [ImaginationWrapper(PointMassEnv(), wrapper.world_model) for _ in range(2)]
    for own in alone:
        own.reset(seed=4)
    before = alone[0].unwrapped.position.copy()
    with pytest.raises(SfvgenError, match=r"\(2,\) finite numbers"):
        step_batch(alone, [np.zeros(2), action])
    with pytest.raises(SfvgenError, match=r"\(2,\) finite numbers"):
        wrapper.step(action)
    assert [own.num_steps for own in (*alone, wrapper)] == [0, 0, 0]
    assert np.array_equal(alone[0].unwrapped.position, before)
