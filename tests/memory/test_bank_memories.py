"""Memories in a bank: whose they are, and episodes that start from them."""

import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.memory import MEMORY_VARIANTS, EpisodicMemory, MemoryBank, MemoryConfig
from sfvgen_planner.memory.bank import fingerprint
from sfvgen_planner.world_model import tiny_world_model
from tests.banked_episodes import chunk, picture, record
from tests.tiny_env import RandomPictureEnv


def test_memories_of_other_weights_are_refused_but_their_frames_are_not(tmp_path, shared_model):
    with MemoryBank(tmp_path, shared_model) as bank:
        record(bank, 0, 1)
    other = tiny_world_model(seed=1)
    bank = MemoryBank(tmp_path, other)
    with pytest.raises(SfvgenError, match="other slow weights"):
        bank[0].state()
    assert np.array_equal(bank[0].chunk(0).frames, chunk(0)[0])
    assert bank.nearest(picture(0)) is None
    record(bank, 0, 1)
    assert bank.nearest(picture(0)).episode.number == 1
    bank.close()


def test_an_attached_memory_does_not_make_it_another_model(tmp_path):
    model = tiny_world_model()
    with MemoryBank(tmp_path, model) as bank:
        record(bank, 0, 1)
    memory = EpisodicMemory(model, MemoryConfig(learning_rate=1e-2))
    memory.write(chunk(0)[0][:4], chunk(1)[0])
    assert bank[0].model == MemoryBank(tmp_path, model, mode="r").model_fingerprint


OURS = replace(MEMORY_VARIANTS["ours"], rank=2, num_time_codes=2)


def test_what_is_written_makes_no_other_model_and_what_reads_it_does():
    """Of our adapters, B is each memory's own; A and the codes are every memory's."""
    model = tiny_world_model(denoiser="transformer")
    bare = fingerprint(model)
    memory = EpisodicMemory(model, OURS, num_memories=2)
    attached = fingerprint(model)
    frames = chunk(0)[0][None]
    memory.write_batch(frames, frames, memories=[1])
    assert fingerprint(model) == attached != bare
    found = set()
    for name, parameter in model.unet.named_parameters():
        kind = re.search(r"lora_\w+", name)
        kind = kind.group() if kind else "slow"
        if kind in found:
            continue
        found.add(kind)
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter += 0.5
        assert (fingerprint(model) == attached) == (kind == "lora_B")
        with torch.no_grad():
            parameter.copy_(before)
    codes = {"lora_position_code", "lora_time_scale", "lora_time_shift"}
    assert found == {"slow", "lora_A", "lora_B", *codes}
    memory.detach()
    assert fingerprint(model) == bare


def test_a_bank_is_opened_after_the_memory_is_attached(tmp_path):
    model = tiny_world_model(denoiser="transformer")
    with MemoryBank(tmp_path, model) as bank:
        memory = EpisodicMemory(model, OURS)
        with pytest.raises(SfvgenError, match="attach the memory first"):
            ImaginationWrapper(RandomPictureEnv(), model, memory, bank=bank)
    with MemoryBank(tmp_path, model) as bank:
        ImaginationWrapper(RandomPictureEnv(), model, memory, bank=bank)


def test_an_episode_of_a_known_scene_starts_from_its_memory(tmp_path):
    """The wrapper records each episode and starts a scene's second one where the first ended."""
    model = tiny_world_model()
    config = MemoryConfig(learning_rate=1e-2, num_steps=1, num_noise_draws=1)
    memory = EpisodicMemory(model, config)
    empty = memory.state()
    # The latents of an untrained autoencoder hardly differ.
    with MemoryBank(tmp_path, model, same_scene_distance=1e-3) as bank:
        env = ImaginationWrapper(RandomPictureEnv(), model, memory, bank=bank)
        frames = [env.reset(seed=0)[0]]
        assert env.recalled is None
        actions = np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32)
        states = []
        for step, action in enumerate(actions):
            frames.append(env.step(action)[0])
            if step % 8 == 7:
                states.append(memory.state())
        env.reset(seed=1)
        assert env.recalled is None
        assert_same(memory.state(), empty)
        (episode,) = bank
        assert len(episode) == 2  # the last 4 steps made no chunk
        assert np.array_equal(episode.first_frame(), frames[0])
        for index in range(2):
            rows = slice(8 * index, 8 * index + 8)
            stored = episode.chunk(index)
            assert np.array_equal(stored.frames, np.stack(frames[1:])[rows])
            assert np.array_equal(stored.actions, actions[rows])
            assert stored.instructions == [f"step {step}" for step in range(20)][rows]
            assert_same(episode.state(index), states[index])
        env.reset(seed=0)
        assert env.recalled.episode.number == episode.number
        assert_same(memory.state(), states[-1])
        env.close()
    # Neither short episode left anything behind.
    reader = MemoryBank(tmp_path, model, same_scene_distance=1e-3, mode="r")
    assert len(reader) == 1
    env = ImaginationWrapper(RandomPictureEnv(), model, memory, bank=reader)
    env.reset(seed=0)
    assert_same(memory.state(), states[-1])
    for action in actions:
        env.step(action)
    env.close()
    assert len(list((tmp_path / "episodes").iterdir())) == 1  # it only looked
    with pytest.raises(SfvgenError, match="give a memory"):
        ImaginationWrapper(RandomPictureEnv(), model, bank=bank)


def test_a_memory_of_other_settings_is_not_gone_on_from(tmp_path, caplog):
    model = tiny_world_model()
    for rank in (2, 3):
        config = MemoryConfig(rank=rank, num_steps=1, num_noise_draws=1)
        memory = EpisodicMemory(model, config)
        empty = memory.state()
        with MemoryBank(tmp_path, model, same_scene_distance=1e-3) as bank:
            env = ImaginationWrapper(RandomPictureEnv(), model, memory, bank=bank)
            env.reset(seed=0)
            assert env.recalled is None
            assert_same(memory.state(), empty)
            for action in np.zeros((8, 4), np.float32):
                env.step(action)
            env.close()
        memory.detach()
    assert caplog.text.count("the episode begins with an empty memory") == 1
    assert "another model, rank or set of layers" in caplog.text


def test_a_damaged_memory_of_a_known_scene_does_not_end_the_new_episode(tmp_path, caplog):
    model = tiny_world_model()
    memory = EpisodicMemory(model, MemoryConfig(num_steps=1, num_noise_draws=1))
    empty = memory.state()
    with MemoryBank(tmp_path, model, same_scene_distance=1e-3) as bank:
        env = ImaginationWrapper(RandomPictureEnv(), model, memory, bank=bank)
        env.reset(seed=0)
        for action in np.zeros((8, 4), np.float32):
            env.step(action)
        env.reset(seed=0)
        assert env.recalled.episode.number == 0
        (file,) = bank[0].path.glob("chunk_*")
        file.write_bytes(file.read_bytes()[:-1])
        env.reset(seed=0)
        assert env.recalled is None
        assert_same(memory.state(), empty)
        env.close()
    assert "cannot be read" in caplog.text


def test_a_model_in_another_precision_knows_the_scenes(tmp_path, caplog):
    half = tiny_world_model().to(torch.float16)
    with MemoryBank(tmp_path, half.to(torch.float32)) as bank:
        record(bank, 0, 1)
    reader = MemoryBank(tmp_path, half.to(torch.bfloat16), mode="r")
    assert reader.nearest(picture(0)).is_same_scene
    assert "other weights" not in caplog.text
    other = MemoryBank(tmp_path, tiny_world_model(seed=1), mode="r")
    assert other.nearest(picture(0)) is None
    assert "1 of 1 episodes are of other weights" in caplog.text


def test_a_forked_process_does_not_write_into_the_same_bank(tmp_path, shared_model):
    bank = MemoryBank(tmp_path, shared_model)
    child = os.fork()
    if not child:
        # Nothing else of the test runs in the child.
        try:
            bank.begin(picture(0))
        except SfvgenError as error:
            os._exit(0 if "opened in another process" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    record(bank, 0, 1)
    bank.close()


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], tensor) for name, tensor in right.items())
