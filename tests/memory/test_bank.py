"""The memory bank against what was put in, killed processes and damaged files."""

import errno
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import ImaginationWrapper, step_batch
from sfvgen_planner.memory import (
    MEMORY_VARIANTS,
    EpisodicMemory,
    MemoryBank,
    MemoryConfig,
    bank_episode,
)
from sfvgen_planner.memory.bank import fingerprint
from sfvgen_planner.world_model import tiny_world_model
from tests.tiny_env import RandomPictureEnv


@pytest.fixture(scope="module")
def model():
    return tiny_world_model()


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def state(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.lora_A.weight": torch.randn(4, 8, generator=generator),
        "num_writes": torch.tensor(seed),
    }


def chunk(seed):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    actions = rng.normal(size=(8, 4)).astype(np.float32)
    return frames, actions, [f"put ü {seed}"] * 8, state(seed)


def record(bank, seed, num_chunks):
    writer = bank.begin(picture(seed))
    for index in range(num_chunks):
        writer.append(*chunk(100 * seed + index))
    writer.close()
    return writer


def assert_holds(episode, seed, num_chunks):
    assert len(episode) == num_chunks
    assert np.array_equal(episode.first_frame(), picture(seed))
    for index in range(num_chunks):
        frames, actions, instructions, memory = chunk(100 * seed + index)
        stored = episode.chunk(index)
        assert np.array_equal(stored.frames, frames)
        assert np.array_equal(stored.actions, actions)
        assert stored.instructions == instructions
        found = episode.state(index)
        assert found.keys() == memory.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in memory.items())


def test_what_was_put_in_comes_back(tmp_path, model):
    with MemoryBank(tmp_path / "new" / "bank", model) as bank:
        for seed in range(3):
            record(bank, seed, seed + 1)
    for mode in ("r", "a"):
        bank = MemoryBank(tmp_path / "new" / "bank", model, mode=mode)
        assert len(bank) == 3
        for seed, episode in enumerate(bank):
            assert_holds(episode, seed, seed + 1)
        assert bank[-1].state()["num_writes"] == 202
        bank.close()
    with pytest.raises(IndexError):
        bank[0].chunk(1)


def test_other_programs_read_the_files(tmp_path, model):
    with MemoryBank(tmp_path, model) as bank:
        record(bank, 1, 1)
    tensors = load_file(tmp_path / "episodes" / "00000000" / "chunk_00000.safetensors")
    frames, _, _, memory = chunk(100)
    assert np.array_equal(tensors["frames"].numpy(), frames)
    assert torch.equal(tensors["memory.layer.lora_A.weight"], memory["layer.lora_A.weight"])


def test_episodes_are_recorded_side_by_side(tmp_path, model):
    bank = MemoryBank(tmp_path, model)
    writers = [bank.begin(picture(seed)) for seed in range(2)]
    for index in range(2):
        for seed in (1, 0):
            writers[seed].append(*chunk(100 * seed + index))
    for seed, episode in enumerate(bank):
        assert_holds(episode, seed, 2)
    bank.close()
    with pytest.raises(SfvgenError, match="closed"):
        writers[0].append(*chunk(0))


FILE_CALLS = ("fsync", "mkdir", "replace", "rmdir", "unlink")


def killed_before_each_file_call(folder, max_bytes):
    """Record two episodes anew for k = 0, 1, ... and die by SIGKILL before the k-th call."""
    model = tiny_world_model()
    for moment in itertools.count():
        child = os.fork()
        if child == 0:
            left = itertools.count(moment, -1)
            for name in FILE_CALLS:
                setattr(os, name, mortal(getattr(os, name), left))
            with MemoryBank(folder / str(moment), model, max_bytes) as bank:
                for seed in range(2):
                    writer = bank.begin(picture(seed))
                    for index in range(2):
                        writer.append(*chunk(100 * seed + index))
                        with (folder / f"{moment}.done").open("ab") as done:
                            done.write(b"x")
                    writer.close()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))


def mortal(call, left):
    def dies(*args, **kwargs):
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    return dies


@pytest.mark.parametrize("limited", [False, True])
def test_a_process_killed_before_any_file_call_leaves_whole_chunks(tmp_path, model, limited):
    with MemoryBank(tmp_path / "one", model) as bank:
        record(bank, 0, 2)
        max_bytes = int(1.2 * bank.num_bytes) if limited else None
    folder = tmp_path / "killed"
    folder.mkdir()
    # A server that has never run a thread may fork.
    processes = multiprocessing.get_context("forkserver")
    process = processes.Process(target=killed_before_each_file_call, args=(folder, max_bytes))
    process.start()
    process.join()
    assert process.exitcode == 0
    banks = [path for path in folder.iterdir() if path.is_dir()]
    assert len(banks) > 25
    for path in banks:
        done = folder / f"{path.name}.done"
        num_done = done.stat().st_size if done.exists() else 0
        if (path / "bank.json").exists():
            check_killed(MemoryBank(path, model, mode="r"), num_done, limited)
        with MemoryBank(path, model) as bank:
            check_killed(bank, num_done, limited)
            assert not list(path.rglob(".*"))
            record(bank, 5, 1)
            assert_holds(bank[-1], 5, 1)


def check_killed(bank, num_done, limited):
    lengths = {int(episode.state(0)["num_writes"]) // 100: len(episode) for episode in bank}
    for episode, (seed, length) in zip(bank, lengths.items(), strict=True):
        assert_holds(episode, seed, length)
    # A chunk may be on disk although there was no time left to say so.
    whole = {0: {}, 1: {0: 1}, 2: {0: 2}, 3: {0: 2, 1: 1}, 4: {0: 2, 1: 2}}
    allowed = [whole[num_done], whole[min(num_done + 1, 4)]]
    if limited:
        allowed += [{seed: n for seed, n in one.items() if seed == 1} for one in allowed]
        allowed = [one for one in allowed if one or num_done == 0]
    assert lengths in allowed


@pytest.mark.parametrize("keep", [0, 3, 200, -1])
def test_a_file_cut_short_ends_the_episode_before_it(tmp_path, model, keep):
    with MemoryBank(tmp_path, model) as bank:
        for seed in range(3):
            record(bank, seed, 3)
    files = sorted((tmp_path / "episodes" / "00000001").glob("chunk*"))
    files[1].write_bytes(files[1].read_bytes()[:keep])
    first = tmp_path / "episodes" / "00000002" / "chunk_00000.safetensors"
    first.write_bytes(first.read_bytes()[:keep])
    for mode in ("r", "a"):
        with MemoryBank(tmp_path, model, mode=mode) as bank:
            assert len(bank) == 2
            assert_holds(bank[0], 0, 3)
            assert_holds(bank[1], 1, 1)


def test_episodes_that_cannot_be_read_now_are_left_for_later(tmp_path, model, caplog, monkeypatch):
    with MemoryBank(tmp_path, model) as bank:
        for seed in range(2):
            record(bank, seed, 1)

    def failing(path, framework):
        if path.parent.name == "00000001":
            raise OSError(24, "Too many open files")
        return safe_open(path, framework)

    with monkeypatch.context() as patch:
        patch.setattr(bank_episode, "safe_open", failing)
        with MemoryBank(tmp_path, model) as bank:
            assert [episode.number for episode in bank] == [0]
            record(bank, 2, 1)
    assert "00000001 can't be read" in caplog.text
    with MemoryBank(tmp_path, model) as bank:
        for seed, episode in enumerate(bank):
            assert_holds(episode, seed, 1)
        assert len(bank) == 3


def test_only_unfinished_episodes_of_the_bank_itself_are_removed(tmp_path, model, caplog):
    with MemoryBank(tmp_path, model) as bank:
        record(bank, 0, 1)
    episodes = tmp_path / "episodes"
    shutil.copytree(episodes / "00000000", episodes / "copy")
    shutil.copytree(episodes / "00000000", episodes / "7")
    for name in ("notes.txt", "00000000/.keep", "00000001/start.safetensors", "00000002/notes.txt"):
        (episodes / name).parent.mkdir(exist_ok=True)
        (episodes / name).write_text("")
    before = sorted(episodes.rglob("*"))
    with MemoryBank(tmp_path, model) as bank:
        assert_holds(bank[0], 0, 1)
        assert len(bank) == 1
    gone = [episodes / "00000001", episodes / "00000001/start.safetensors"]
    assert sorted(episodes.rglob("*")) == [path for path in before if path not in gone]
    for name in ("notes.txt", "copy", "7"):
        assert f"{episodes / name} is no episode" in caplog.text


def test_a_bank_that_was_killed_while_it_was_made_is_made_anew(tmp_path, model):
    (tmp_path / "bank" / "episodes").mkdir(parents=True)
    (tmp_path / "bank" / ".bank.json.x7.json").write_text("{")
    with MemoryBank(tmp_path / "bank", model) as bank:
        record(bank, 0, 1)
    assert len(MemoryBank(tmp_path / "bank", model, mode="r")) == 1


def test_the_oldest_episodes_make_room_but_never_those_being_written(tmp_path, model):
    with MemoryBank(tmp_path, model) as bank:
        record(bank, 0, 1)
        one = bank.num_bytes
    bank = MemoryBank(tmp_path, model, max_bytes=int(4.5 * one))
    long = bank.begin(picture(1))
    long.append(*chunk(100))
    for seed in range(2, 6):
        record(bank, seed, 1)
        assert bank.num_bytes <= 4.5 * one
    assert [episode.number for episode in bank] == [1, 3, 4, 5]
    for index in range(1, 6):
        long.append(*chunk(100 + index))
    # One episode alone exceeds the limit: it stays whole, and alone.
    assert [episode.number for episode in bank] == [1]
    assert_holds(bank[0], 1, 6)
    long.close()
    record(bank, 6, 1)
    assert [episode.number for episode in bank] == [6]
    on_disk = sum(file.stat().st_size for file in (tmp_path / "episodes").rglob("*.safetensors"))
    assert bank.num_bytes == on_disk
    bank.close()
    # Numbers are not used again.
    with MemoryBank(tmp_path, model) as bank:
        record(bank, 7, 1)
        assert [episode.number for episode in bank] == [6, 7]


def test_memories_of_other_weights_are_refused_but_their_frames_are_not(tmp_path, model):
    with MemoryBank(tmp_path, model) as bank:
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


def test_nearest_is_the_least_root_mean_square_of_the_latents(tmp_path, model):
    bank = MemoryBank(tmp_path, model)
    assert bank.nearest(picture(0)) is None
    for seed in range(4):
        record(bank, seed, 1)
    frame = picture(9)
    found = bank.nearest(frame)
    latents = model.encode(np.stack([frame, *(picture(seed) for seed in range(4))])[:, None])
    difference = latents[1:] - latents[:1]
    distances = [float(np.sqrt(np.mean(np.square(one.numpy())))) for one in difference]
    assert found.episode.number == int(np.argmin(distances))
    assert found.distance == pytest.approx(min(distances), rel=1e-4)
    same = bank.nearest(picture(2))
    assert same.episode.number == 2
    assert same.distance == pytest.approx(0, abs=1e-4)
    assert same.is_same_scene
    assert torch.equal(same.state()["num_writes"], torch.tensor(200))
    bank.close()
    strict = MemoryBank(tmp_path, model, same_scene_distance=0.0, mode="r")
    assert not strict.nearest(picture(9)).is_same_scene


def test_an_episode_being_written_is_not_its_own_past(tmp_path, model):
    bank = MemoryBank(tmp_path, model)
    writer = bank.begin(picture(0))
    writer.append(*chunk(0))
    assert bank.nearest(picture(0)) is None
    writer.close()
    assert bank.nearest(picture(0)).episode.number == 0
    bank.close()


def play_chunk(envs):
    for _ in range(8):
        step_batch(envs, np.zeros((len(envs), 4), np.float32))


def full(*arguments):
    """What writing to a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nothing_follows_on_a_chunk_that_could_not_be_written(tmp_path, model, monkeypatch):
    with MemoryBank(tmp_path / "bank", model) as bank:
        writer = bank.begin(picture(1))
        writer.append(*chunk(100))
        with monkeypatch.context() as patch:
            patch.setattr(bank_episode, "save_file", full)
            with pytest.raises(SfvgenError, match="No space left"):
                writer.append(*chunk(101))
        with pytest.raises(SfvgenError, match="is closed"):
            writer.append(*chunk(102))
        assert len(bank[0]) == 1
        assert bank[0].chunk(0).instructions == chunk(100)[2]
        record(bank, 2, 2)
        assert_holds(bank[1], 2, 2)


def test_envs_side_by_side_do_not_follow_on_a_missing_chunk_either(tmp_path, monkeypatch):
    model = tiny_world_model()
    config = replace(MEMORY_VARIANTS["ours"], rank=2, num_steps=1, num_noise_draws=1)
    memory = EpisodicMemory(model, config, num_memories=2)
    with MemoryBank(tmp_path / "bank", model) as bank:
        envs = [
            ImaginationWrapper(RandomPictureEnv(), model, memory, bank, memory_index=index)
            for index in range(2)
        ]
        for seed, env in enumerate(envs):
            env.reset(seed=seed)
        play_chunk(envs)
        with monkeypatch.context() as patch:
            patch.setattr(bank_episode, "save_file", full)
            with pytest.raises(SfvgenError, match="No space left"):
                play_chunk(envs)
        with pytest.raises(SfvgenError, match="is closed"):
            play_chunk(envs[1:])
        assert [len(episode) for episode in bank] == [1, 1]


def test_bad_input_is_told(tmp_path, model):
    with pytest.raises(SfvgenError, match="no memory bank"):
        MemoryBank(tmp_path / "none", model, mode="r")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").touch()
    with pytest.raises(SfvgenError, match=r"holds thesis\.txt"):
        MemoryBank(foreign, model)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    with pytest.raises(SfvgenError, match="max_bytes"):
        MemoryBank(tmp_path / "bank", model, max_bytes=0)
    with pytest.raises(SfvgenError, match="mode must be"):
        MemoryBank(tmp_path / "bank", model, mode="w")
    assert not (tmp_path / "bank").exists()
    with pytest.raises(SfvgenError, match="same_scene_distance"):
        MemoryBank(tmp_path / "bank", model, same_scene_distance=-1)
    bank = MemoryBank(tmp_path / "bank", model)
    with pytest.raises(SfvgenError, match="another process"):
        MemoryBank(tmp_path / "bank", model)
    reader = MemoryBank(tmp_path / "bank", model, mode="r")
    with pytest.raises(SfvgenError, match="mode='a'"):
        reader.begin(picture(0))
    writer = bank.begin(picture(0))
    frames, actions, instructions, memory = chunk(0)
    with pytest.raises(SfvgenError, match="frames must be uint8"):
        writer.append(frames[:, :32], actions, instructions, memory)
    with pytest.raises(SfvgenError, match="as many actions"):
        writer.append(frames, actions[:7], instructions, memory)
    bank.close()
    with pytest.raises(SfvgenError, match="is closed"):
        bank.begin(picture(0))
    assert len(MemoryBank(tmp_path / "bank", model)) == 0
    (tmp_path / "bank" / "bank.json").write_text('{"format": "sfvgen-memory-bank", "version": 9}')
    with pytest.raises(SfvgenError, match="version 9"):
        MemoryBank(tmp_path / "bank", model, mode="r")


def test_a_dropped_episode_is_told(tmp_path, model):
    with MemoryBank(tmp_path, model) as bank:
        record(bank, 0, 1)
        reader = MemoryBank(tmp_path, model, mode="r")
        bank.max_bytes = 1
        record(bank, 1, 1)
    with pytest.raises(SfvgenError, match="dropped"):
        reader[0].state()


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


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], tensor) for name, tensor in right.items())


def test_of_two_that_make_a_bank_at_once_one_writes_it(tmp_path, model, monkeypatch):
    """The second comes while the first has not yet described the folder as a bank."""
    describe, refused = MemoryBank._describe, []

    def interrupted(bank):
        if not refused:
            refused.append(None)
            with pytest.raises(SfvgenError, match="another process is writing"):
                MemoryBank(tmp_path, model)
        describe(bank)

    monkeypatch.setattr(MemoryBank, "_describe", interrupted)
    with MemoryBank(tmp_path, model) as bank:
        record(bank, 0, 1)
        with pytest.raises(SfvgenError, match="another process is writing"):
            MemoryBank(tmp_path, model)
    assert len(MemoryBank(tmp_path, model, mode="r")) == 1
    # A bank that can't be opened is not held.
    (tmp_path / "bank.json").write_text("{}")
    with pytest.raises(SfvgenError, match="no memory bank"):
        MemoryBank(tmp_path, model)


@pytest.mark.parametrize("error", [RuntimeError("unable to open file"), FileNotFoundError("gone")])
def test_an_episode_that_vanishes_as_it_is_read_is_left_out(tmp_path, model, monkeypatch, error):
    with MemoryBank(tmp_path, model) as bank:
        record(bank, 0, 1)
        record(bank, 1, 1)
    reader = MemoryBank(tmp_path, model, mode="r")
    real = bank_episode.safe_open

    def safe_open(path, framework):
        if path.parent.name.endswith("0"):
            raise error
        return real(path, framework)

    monkeypatch.setattr(bank_episode, "safe_open", safe_open)
    assert [episode.number for episode in MemoryBank(tmp_path, model, mode="r")] == [1]
    with pytest.raises(SfvgenError, match="dropped from the bank in the meantime"):
        reader[0].first_frame()
    assert bank_episode.folder_bytes(tmp_path / "nowhere") == 0
    shutil.rmtree(tmp_path / "episodes")
    assert len(MemoryBank(tmp_path, model, mode="r")) == 0


def test_episodes_that_end_side_by_side_keep_to_the_limit(tmp_path, model):
    with MemoryBank(tmp_path, model) as bank:
        record(bank, 0, 1)
        one = bank.num_bytes
    bank = MemoryBank(tmp_path, model, max_bytes=int(1.5 * one))
    writers = [bank.begin(picture(seed)) for seed in (1, 2)]
    for seed, writer in enumerate(writers):
        writer.append(*chunk(seed))
    for writer in writers:
        writer.close()
    assert [episode.number for episode in bank] == [2]


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
    assert "by a memory of other settings" in caplog.text
