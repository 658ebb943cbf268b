"""Several wrappers that share a model and a memory, against wrappers that have their own."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.wrappers import TransformAction

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import (
    ImaginationWrapper,
    decode_videos,
    imagine_batch,
    step_batch,
)
from sfvgen_planner.memory import MEMORY_VARIANTS, EpisodicMemory
from sfvgen_planner.world_model import tiny_world_model
from tests.point_mass import PointMassEnv, PointMassWorldModel
from tests.tiny_env import RandomPictureEnv

MEMORY = replace(MEMORY_VARIANTS["ours"], rank=2, num_steps=1, num_noise_draws=1, learning_rate=0.1)
RESET_AFTER = (0, 5, 9)
"""Steps into which the episode of each env begins: the last ones are young."""
NUM_STEPS = 17


def new_model():
    # In double precision: what differs then is no rounding.
    return tiny_world_model(denoiser="transformer").to(torch.float64)


def act(step, row):
    return np.random.default_rng([step, row]).uniform(-1, 1, 4).astype(np.float32)


@pytest.fixture(scope="module")
def alone():
    """Three wrappers with a model and a memory of their own, stepped one by one."""
    envs = []
    for row, begin in enumerate(RESET_AFTER):
        model = new_model()
        memory = EpisodicMemory(model, MEMORY)
        env = ImaginationWrapper(RandomPictureEnv(), model, memory, measure_writes=True)
        env.reset(seed=row)
        for step in range(begin, NUM_STEPS):
            env.step(act(step, row))
        envs.append(env)
    return envs


def test_what_an_env_clips_is_learnt_as_it_was_taken():
    """Under a memory that learns from actions too."""
    states = []
    for action in (np.float32([1.5, -7.0]), np.float32([1.0, -1.0])):
        model = tiny_world_model(action_size=2)
        memory = EpisodicMemory(model, replace(MEMORY, conditioned=True))
        clipping = TransformAction(PointMassEnv(), lambda action: np.clip(action, -1, 1), None)
        env = ImaginationWrapper(clipping, model, memory)
        env.reset(seed=0)
        for _ in range(model.config.num_future_frames):
            env.step(action)
        assert len(env.memory_writes) == 1
        states.append(memory.state())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


def play(memory, model):
    """The same three in one memory: the first alone at first, the others where it has begun."""
    envs = [
        ImaginationWrapper(
            RandomPictureEnv(), model, memory, memory_index=index, measure_writes=True
        )
        for index in range(3)
    ]
    for row, env in enumerate(envs):
        env.reset(seed=row)
    for step in range(NUM_STEPS):
        rows = [row for row in range(3) if step >= RESET_AFTER[row]]
        step_batch([envs[row] for row in rows], [act(step, row) for row in rows])
    return envs


@pytest.fixture(scope="module")
def together():
    model = new_model()
    return play(EpisodicMemory(model, MEMORY, num_memories=3), model)


def assert_equal_states(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name].double(), value.double(), atol=1e-5)


def test_memories_learn_what_they_learn_alone(alone, together):
    memory = together[0].memory
    # 17, 12 and 8 steps: 2, 1 and 1 chunks, complete at different steps or at the same one.
    assert memory.num_writes == [2, 1, 1]
    for index, env in enumerate(alone):
        assert_equal_states(memory.state(index), env.memory.state())
        assert len(together[index].memory_writes) == len(env.memory_writes)
        for found, expected in zip(together[index].memory_writes, env.memory_writes, strict=True):
            assert found.loss_after == pytest.approx(expected.loss_after, abs=1e-5)


@pytest.mark.parametrize("rows", [(0, 1, 2), (2, 0), (1,)])
@pytest.mark.parametrize("kind", ["samples", "candidates", "one sequence"])
def test_each_imagines_what_it_imagines_alone(alone, together, rows, kind):
    rng = np.random.default_rng(0)
    settings = {"num_inference_steps": 2}
    texts = ["return the red cube", None, "put it away"]
    actions = None
    if kind == "samples":
        settings |= {"num_samples": 2, "num_frames": 10, "guidance_scale": 2.0}
    elif kind == "candidates":
        actions = rng.uniform(-1, 1, (3, 4, 3, 4)).astype(np.float32)
    else:
        actions = rng.uniform(-1, 1, (3, 3, 4)).astype(np.float32)
        settings |= {"num_samples": 2}
    found = imagine_batch(
        [together[row] for row in rows],
        None if actions is None else actions[list(rows)],
        [texts[row] for row in rows],
        seeds=[10 + row for row in rows],
        **settings,
    )
    for row, future in zip(rows, found, strict=True):
        own = None if actions is None else actions[row]
        expected = alone[row].imagine(own, texts[row], seed=10 + row, **settings)
        assert future.latents.shape == expected.latents.shape
        assert torch.allclose(future.latents, expected.latents, atol=1e-4)
        assert torch.allclose(future.present_latents, expected.present_latents, atol=1e-4)
        assert future.instruction == texts[row]
        # With a memory that is not nothing.
        alone[row].memory.enabled = False
        without = alone[row].imagine(own, texts[row], seed=10 + row, **settings)
        alone[row].memory.enabled = True
        assert (future.latents - without.latents).abs().max() > 1e-3


def test_those_with_few_frames_behind_them_are_one_further_call():
    model = PointMassWorldModel(noise=0.1)
    envs = [ImaginationWrapper(PointMassEnv(), model) for _ in range(4)]
    for row, env in enumerate(envs):
        env.reset(seed=row)
        for _ in range((0, 5, 2, 7)[row]):
            env.step(np.zeros(2))
    futures = imagine_batch(envs, instructions=["left", "up", None, "down"], seeds=range(4))
    assert sorted(model.batch_sizes) == [2, 2]
    for env, future, text in zip(envs, futures, ["left", "up", None, "down"], strict=True):
        expected = env.imagine(instruction=text, seed=envs.index(env))
        assert np.array_equal(future.frames, expected.frames)


def test_a_new_episode_begins_with_an_empty_memory_and_leaves_the_others_theirs():
    model = new_model()
    memory = EpisodicMemory(model, MEMORY, num_memories=3)
    envs = play(memory, model)
    before = [memory.state(index) for index in range(3)]
    envs[1].reset(seed=7)
    fresh = EpisodicMemory(new_model(), MEMORY).state()
    assert memory.num_writes == [2, 0, 1]
    for index, expected in ((0, before[0]), (1, fresh), (2, before[2])):
        assert_equal_states(memory.state(index), expected)
    # A memory that has written nothing is not seen, though its neighbour's is.
    bare = ImaginationWrapper(RandomPictureEnv(), new_model())
    bare.reset(seed=7)
    expected = bare.imagine(instruction="away", seed=1, num_inference_steps=1)
    found = imagine_batch(envs[:2], None, ["away"] * 2, seeds=[1, 1], num_inference_steps=1)[1]
    assert torch.allclose(found.latents, expected.latents, atol=1e-5)


def test_who_rests_costs_no_write(monkeypatch):
    model = new_model()
    memory = EpisodicMemory(model, MEMORY, num_memories=3)
    written, write = [], memory.write_batch

    def spy(*args, **kwargs):
        written.append(list(args[-1]))
        return write(*args, **kwargs)

    monkeypatch.setattr(memory, "write_batch", spy)
    envs = [ImaginationWrapper(RandomPictureEnv(), model, memory, memory_index=i) for i in range(3)]
    for row, env in enumerate(envs):
        env.reset(seed=row)
    for step in range(16):
        playing = envs if step < 11 else [envs[2], envs[0]]
        step_batch(playing, [act(step, env.memory_index) for env in playing])
    # All that complete a chunk at a step are one write.
    assert written == [[0, 1, 2], [2, 0]]
    assert memory.num_writes == [2, 1, 2]
    assert envs[1].num_steps == 11


def test_without_a_seed_every_env_and_call_differs():
    model = PointMassWorldModel(noise=0.2)
    envs = [ImaginationWrapper(PointMassEnv(), model) for _ in range(2)]
    for env in envs:
        env.reset(seed=0)
    action = np.zeros((2, 6, 2), np.float32)
    imagine = partial(imagine_batch, envs, action)
    videos = [future.latents for _ in range(2) for future in imagine()]
    for i, video in enumerate(videos):
        for other in videos[i + 1 :]:
            assert not torch.equal(video, other)
    same = [future.latents for _ in range(2) for future in imagine(seeds=[3, 3])]
    assert all(torch.equal(same[0], video) for video in same)


def test_videos_of_different_length_are_decoded_in_one_call():
    model = tiny_world_model(denoiser="transformer")
    videos = [torch.randn(4, length, 4, 4) for length in (3, 1, 5)]
    for video, found in zip(videos, decode_videos(model, videos), strict=True):
        expected = model.decode(video[None])[0]
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_what_does_not_belong_together_is_refused():
    model = PointMassWorldModel()
    envs = [ImaginationWrapper(PointMassEnv(), model) for _ in range(2)]
    for env in envs:
        env.reset(seed=0)
    stranger = ImaginationWrapper(PointMassEnv(), PointMassWorldModel())
    with pytest.raises(SfvgenError, match="share one world model and one memory"):
        imagine_batch([envs[0], stranger])
    with pytest.raises(SfvgenError, match="share one world model and one memory"):
        step_batch([envs[0], stranger], np.zeros((2, 2)))
    with pytest.raises(SfvgenError, match="at least one env"):
        imagine_batch([])
    with pytest.raises(SfvgenError, match="2 envs need as many actions, instructions and seeds"):
        imagine_batch(envs, seeds=[1])
    for wrong, message in ((envs, "2 envs need as many actions, got 1"), ([envs[0]] * 2, "twice")):
        with pytest.raises(SfvgenError, match=message):
            step_batch(wrong, np.zeros((1 if wrong is envs else 2, 2)))
    assert [env.num_steps for env in envs] == [0, 0]
    with pytest.raises(SfvgenError, match="as many actions, as long"):
        imagine_batch(envs, [np.zeros((3, 2)), np.zeros((4, 2))])
    model = new_model()
    memory = EpisodicMemory(model, MEMORY, num_memories=2)
    twins = [ImaginationWrapper(RandomPictureEnv(), model, memory, memory_index=1)] * 2
    twins[0].reset(seed=0)
    with pytest.raises(SfvgenError, match="memories must be different numbers"):
        imagine_batch(twins)
    for index, message in ((2, "from 0 to 1, .* got 2"), (-1, "at least 0, got -1")):
        with pytest.raises(SfvgenError, match=message):
            ImaginationWrapper(RandomPictureEnv(), model, memory, memory_index=index)


class StrictEnv(RandomPictureEnv):
    """Takes no action out of its bounds."""

    def step(self, action):
        if not self.action_space.contains(action):
            raise ValueError("not mine")
        return super().step(action)


def strict_envs(model, memory):
    envs = [ImaginationWrapper(StrictEnv(), model, memory, memory_index=i) for i in range(2)]
    for row, env in enumerate(envs):
        env.reset(seed=row)
    return envs


def test_the_step_that_completes_a_chunk_tells_what_its_write_did():
    """Of the env that asks for it alone, and as the memory itself says; the others learn alike."""
    infos, states = [], []
    for asks in (True, False):
        model = tiny_world_model()
        memory = EpisodicMemory(model, MEMORY, num_memories=2)
        envs = [
            ImaginationWrapper(
                RandomPictureEnv(),
                model,
                memory,
                memory_index=index,
                measure_writes=asks and not index,
            )
            for index in range(2)
        ]
        frames = [np.stack([env.reset(seed=row)[0] for row, env in enumerate(envs)])]
        for step in range(9):
            results = step_batch(envs, [act(step, row) for row in range(2)])
            frames.append(np.stack([result[0] for result in results]))
            infos.append([result[4] for result in results])
        states.append(memory.state(0))
        assert all(np.isnan(env.memory_writes[0].loss_after) != asks for env in envs)
    told = [[info.pop("memory_write", None) for info in both] for both in infos]
    assert infos == [[{"instruction": f"step {step + 1}"}] * 2 for step in range(9)] * 2
    assert [losses for both in told for losses in both if losses] == [told[7][0]]
    model = tiny_world_model()
    memory = EpisodicMemory(model, MEMORY, num_memories=2)
    lived = np.stack(frames, axis=1)
    expected = memory.write_batch(lived[:, :1], lived[:, 1:9])[0]
    assert told[7][0] == pytest.approx(
        {
            "loss_without": expected.loss_without,
            "loss_before": expected.loss_before,
            "loss_after": expected.loss_after,
        },
        rel=1e-4,
    )
    assert_equal_states(*states)


def test_what_others_have_seen_is_learnt_though_one_refuses_its_action():
    model = tiny_world_model()
    memory = EpisodicMemory(model, MEMORY, num_memories=2)
    envs = strict_envs(model, memory)
    for step in range(7):
        step_batch(envs, [act(step, 0), act(step, 1)])
    with pytest.raises(ValueError, match="not mine"):
        step_batch(envs, [act(7, 0), act(7, 1) + 9])
    assert memory.num_writes == [1, 0]
    for step in range(8):
        envs[0].step(act(step, 0))
    assert memory.num_writes == [2, 0]


def test_an_env_without_a_memory_does_not_see_that_of_another():
    model = tiny_world_model()
    bare = ImaginationWrapper(RandomPictureEnv(), model)
    bare.reset(seed=0)
    expected = bare.imagine(seed=0).latents
    memory = EpisodicMemory(model, MEMORY, num_memories=2)
    envs = strict_envs(model, memory)
    # As in an evaluation loop.
    with torch.inference_mode():
        for step in range(8):
            step_batch(envs, [act(step, 0), act(step, 1)])
        seen = envs[0].imagine(seed=0).latents
    # Not bit for bit: some processors add up differently once layers have adapters.
    torch.testing.assert_close(bare.imagine(seed=0).latents, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(envs[0].imagine(seed=0).latents, seen, atol=1e-4, rtol=1e-4)
    memory.enabled = False
    assert not torch.allclose(envs[0].imagine(seed=0).latents, seen, atol=1e-2)


def test_a_detached_memory_learns_no_more():
    model = tiny_world_model()
    memory = EpisodicMemory(model, MEMORY)
    memory.detach()
    chunk = np.zeros((8, 64, 64, 3), np.uint8)
    with pytest.raises(SfvgenError, match="was detached: make a new one"):
        memory.write(chunk[:4], chunk)


def test_reversed_actions_are_imagined():
    model = tiny_world_model()
    env = ImaginationWrapper(RandomPictureEnv(), model)
    env.reset(seed=0)
    actions = np.stack([act(step, 0) for step in range(3)])
    latents = env.imagine(actions[::-1], seed=0).latents
    assert torch.equal(latents, env.imagine(actions[::-1].copy(), seed=0).latents)


def test_an_episode_that_another_env_took_the_memory_of_is_told_so():
    model = tiny_world_model()
    memory = EpisodicMemory(model)
    first, second = (ImaginationWrapper(RandomPictureEnv(), model, memory) for _ in range(2))
    first.reset(seed=0)
    first.step(np.zeros(4, np.float32))
    second.reset(seed=1)
    for work in (lambda: first.step(np.zeros(4, np.float32)), first.imagine):
        with pytest.raises(SfvgenError, match="a memory of its own"):
            work()
    assert first.num_steps == 1
    second.step(np.zeros(4, np.float32))
    first.reset(seed=0)
    first.step(np.zeros(4, np.float32))
    # By hand a memory can be emptied at any time.
    memory.reset()
    first.step(np.zeros(4, np.float32))
    assert first.num_steps == 2
