"""The memory bank against killed processes, damaged files and full disks."""

import errno
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import ImaginationWrapper, step_batch
from sfvgen_planner.memory import MEMORY_VARIANTS, EpisodicMemory, MemoryBank, bank_episode
from sfvgen_planner.world_model import tiny_world_model
from tests.banked_episodes import assert_holds, chunk, picture, record
from tests.tiny_env import RandomPictureEnv

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
def test_a_process_killed_before_any_file_call_leaves_whole_chunks(tmp_path, shared_model, limited):
    with MemoryBank(tmp_path / "one", shared_model) as bank:
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
            check_killed(MemoryBank(path, shared_model, mode="r"), num_done, limited)
        with MemoryBank(path, shared_model) as bank:
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
def test_a_file_cut_short_ends_the_episode_before_it(tmp_path, shared_model, keep):
    with MemoryBank(tmp_path, shared_model) as bank:
        for seed in range(3):
            record(bank, seed, 3)
    files = sorted((tmp_path / "episodes" / "00000001").glob("chunk*"))
    files[1].write_bytes(files[1].read_bytes()[:keep])
    first = tmp_path / "episodes" / "00000002" / "chunk_00000.safetensors"
    first.write_bytes(first.read_bytes()[:keep])
    for mode in ("r", "a"):
        with MemoryBank(tmp_path, shared_model, mode=mode) as bank:
            assert len(bank) == 2
            assert_holds(bank[0], 0, 3)
            assert_holds(bank[1], 1, 1)


def test_episodes_that_cannot_be_read_now_are_left_for_later(
    tmp_path, shared_model, caplog, monkeypatch
):
    with MemoryBank(tmp_path, shared_model) as bank:
        for seed in range(2):
            record(bank, seed, 1)

    def failing(path, framework):
        if path.parent.name == "00000001":
            raise OSError(24, "Too many open files")
        return safe_open(path, framework)

    with monkeypatch.context() as patch:
        patch.setattr(bank_episode, "safe_open", failing)
        with MemoryBank(tmp_path, shared_model) as bank:
            assert [episode.number for episode in bank] == [0]
            record(bank, 2, 1)
    assert "00000001 can't be read" in caplog.text
    with MemoryBank(tmp_path, shared_model) as bank:
        for seed, episode in enumerate(bank):
            assert_holds(episode, seed, 1)
        assert len(bank) == 3


@pytest.mark.parametrize("error", [RuntimeError("unable to open file"), FileNotFoundError("gone")])
def test_an_episode_that_vanishes_as_it_is_read_is_left_out(
    tmp_path, shared_model, monkeypatch, error
):
    with MemoryBank(tmp_path, shared_model) as bank:
        record(bank, 0, 1)
        record(bank, 1, 1)
    reader = MemoryBank(tmp_path, shared_model, mode="r")
    real = bank_episode.safe_open

    def safe_open(path, framework):
        if path.parent.name.endswith("0"):
            raise error
        return real(path, framework)

    monkeypatch.setattr(bank_episode, "safe_open", safe_open)
    assert [episode.number for episode in MemoryBank(tmp_path, shared_model, mode="r")] == [1]
    with pytest.raises(SfvgenError, match="dropped from the bank in the meantime"):
        reader[0].first_frame()
    assert reader.nearest(picture(0)).episode.number == 1
    assert [episode.number for episode in reader] == [1]
    assert bank_episode.folder_bytes(tmp_path / "nowhere") == 0
    shutil.rmtree(tmp_path / "episodes")
    assert len(MemoryBank(tmp_path, shared_model, mode="r")) == 0


def test_only_unfinished_episodes_of_the_bank_itself_are_removed(tmp_path, shared_model, caplog):
    with MemoryBank(tmp_path, shared_model) as bank:
        record(bank, 0, 1)
    episodes = tmp_path / "episodes"
    shutil.copytree(episodes / "00000000", episodes / "copy")
    shutil.copytree(episodes / "00000000", episodes / "7")
    for name in ("notes.txt", "00000000/.keep", "00000001/start.safetensors", "00000002/notes.txt"):
        (episodes / name).parent.mkdir(exist_ok=True)
        (episodes / name).write_text("")
    before = sorted(episodes.rglob("*"))
    with MemoryBank(tmp_path, shared_model) as bank:
        assert_holds(bank[0], 0, 1)
        assert len(bank) == 1
    gone = [episodes / "00000001", episodes / "00000001/start.safetensors"]
    assert sorted(episodes.rglob("*")) == [path for path in before if path not in gone]
    for name in ("notes.txt", "copy", "7"):
        assert f"{episodes / name} is no episode" in caplog.text


def test_a_bank_that_was_killed_while_it_was_made_is_made_anew(tmp_path, shared_model):
    (tmp_path / "bank" / "episodes").mkdir(parents=True)
    (tmp_path / "bank" / ".bank.json.x7.json").write_text("{")
    with MemoryBank(tmp_path / "bank", shared_model) as bank:
        record(bank, 0, 1)
    assert len(MemoryBank(tmp_path / "bank", shared_model, mode="r")) == 1


def full(*arguments):
    """What writing to a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nothing_follows_on_a_chunk_that_could_not_be_written(tmp_path, shared_model, monkeypatch):
    with MemoryBank(tmp_path / "bank", shared_model) as bank:
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


def play_chunk(envs):
    for _ in range(8):
        step_batch(envs, np.zeros((len(envs), 4), np.float32))


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
