"""The memory bank against what was put in."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.memory import MemoryBank
from tests.banked_episodes import assert_holds, chunk, picture, record


def test_what_was_put_in_comes_back(tmp_path, shared_model):
    with MemoryBank(tmp_path / "new" / "bank", shared_model) as bank:
        for seed in range(3):
            record(bank, seed, seed + 1)
    for mode in ("r", "a"):
        bank = MemoryBank(tmp_path / "new" / "bank", shared_model, mode=mode)
        assert len(bank) == 3
        for seed, episode in enumerate(bank):
            assert_holds(episode, seed, seed + 1)
        assert bank[-1].state()["num_writes"] == 202
        bank.close()
    with pytest.raises(IndexError):
        bank[0].chunk(1)


def test_other_programs_read_the_files(tmp_path, shared_model):
    with MemoryBank(tmp_path, shared_model) as bank:
        record(bank, 1, 1)
    tensors = load_file(tmp_path / "episodes" / "00000000" / "chunk_00000.safetensors")
    frames, _, _, memory = chunk(100)
    assert np.array_equal(tensors["frames"].numpy(), frames)
    assert torch.equal(tensors["memory.layer.lora_A.weight"], memory["layer.lora_A.weight"])


def test_episodes_are_recorded_side_by_side(tmp_path, shared_model):
    bank = MemoryBank(tmp_path, shared_model)
    writers = [bank.begin(picture(seed)) for seed in range(2)]
    for index in range(2):
        for seed in (1, 0):
            writers[seed].append(*chunk(100 * seed + index))
    for seed, episode in enumerate(bank):
        assert_holds(episode, seed, 2)
    bank.close()
    with pytest.raises(SfvgenError, match="closed"):
        writers[0].append(*chunk(0))


def test_the_oldest_episodes_make_room_but_never_those_being_written(tmp_path, shared_model):
    with MemoryBank(tmp_path, shared_model) as bank:
        record(bank, 0, 1)
        one = bank.num_bytes
    bank = MemoryBank(tmp_path, shared_model, max_bytes=int(4.5 * one))
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
    with MemoryBank(tmp_path, shared_model) as bank:
        record(bank, 7, 1)
        assert [episode.number for episode in bank] == [6, 7]


def test_nearest_is_the_least_root_mean_square_of_the_latents(tmp_path, shared_model):
    bank = MemoryBank(tmp_path, shared_model)
    assert bank.nearest(picture(0)) is None
    for seed in range(4):
        record(bank, seed, 1)
    frame = picture(9)
    found = bank.nearest(frame)
    latents = shared_model.encode(np.stack([frame, *(picture(seed) for seed in range(4))])[:, None])
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
    strict = MemoryBank(tmp_path, shared_model, same_scene_distance=0.0, mode="r")
    assert not strict.nearest(picture(9)).is_same_scene


def test_an_episode_being_written_is_not_its_own_past(tmp_path, shared_model):
    bank = MemoryBank(tmp_path, shared_model)
    writer = bank.begin(picture(0))
    writer.append(*chunk(0))
    assert bank.nearest(picture(0)) is None
    writer.close()
    assert bank.nearest(picture(0)).episode.number == 0
    bank.close()


def test_bad_input_is_told(tmp_path, shared_model):
    with pytest.raises(SfvgenError, match="no memory bank"):
        MemoryBank(tmp_path / "none", shared_model, mode="r")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").touch()
    with pytest.raises(SfvgenError, match=r"holds thesis\.txt"):
        MemoryBank(foreign, shared_model)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    with pytest.raises(SfvgenError, match="max_bytes"):
        MemoryBank(tmp_path / "bank", shared_model, max_bytes=0)
    with pytest.raises(SfvgenError, match="mode must be"):
        MemoryBank(tmp_path / "bank", shared_model, mode="w")
    assert not (tmp_path / "bank").exists()
    with pytest.raises(SfvgenError, match="same_scene_distance"):
        MemoryBank(tmp_path / "bank", shared_model, same_scene_distance=-1)
    bank = MemoryBank(tmp_path / "bank", shared_model)
    with pytest.raises(SfvgenError, match="another process"):
        MemoryBank(tmp_path / "bank", shared_model)
    reader = MemoryBank(tmp_path / "bank", shared_model, mode="r")
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
    assert len(MemoryBank(tmp_path / "bank", shared_model)) == 0
    (tmp_path / "bank" / "bank.json").write_text('{"format": "sfvgen-memory-bank", "version": 9}')
    with pytest.raises(SfvgenError, match="version 9"):
        MemoryBank(tmp_path / "bank", shared_model, mode="r")


def test_a_dropped_episode_is_told(tmp_path, shared_model):
    with MemoryBank(tmp_path, shared_model) as bank:
        record(bank, 0, 1)
        reader = MemoryBank(tmp_path, shared_model, mode="r")
        bank.max_bytes = 1
        record(bank, 1, 1)
    with pytest.raises(SfvgenError, match="dropped"):
        reader[0].state()


def test_of_two_that_make_a_bank_at_once_one_writes_it(tmp_path, shared_model, monkeypatch):
    """The second comes while the first has not yet described the folder as a bank."""
    describe, refused = MemoryBank._describe, []

    def interrupted(bank):
        if not refused:
            refused.append(None)
            with pytest.raises(SfvgenError, match="another process is writing"):
                MemoryBank(tmp_path, shared_model)
        describe(bank)

    monkeypatch.setattr(MemoryBank, "_describe", interrupted)
    with MemoryBank(tmp_path, shared_model) as bank:
        record(bank, 0, 1)
        with pytest.raises(SfvgenError, match="another process is writing"):
            MemoryBank(tmp_path, shared_model)
    assert len(MemoryBank(tmp_path, shared_model, mode="r")) == 1
    # A bank that can't be opened is not held.
    (tmp_path / "bank.json").write_text("{}")
    with pytest.raises(SfvgenError, match="no memory bank"):
        MemoryBank(tmp_path, shared_model)


def test_episodes_that_end_side_by_side_keep_to_the_limit(tmp_path, shared_model):
    with MemoryBank(tmp_path, shared_model) as bank:
        record(bank, 0, 1)
        one = bank.num_bytes
    bank = MemoryBank(tmp_path, shared_model, max_bytes=int(1.5 * one))
    writers = [bank.begin(picture(seed)) for seed in (1, 2)]
    for seed, writer in enumerate(writers):
        writer.append(*chunk(seed))
    for writer in writers:
        writer.close()
    assert [episode.number for episode in bank] == [2]
