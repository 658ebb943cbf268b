import itertools
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import zarr

from sfvgen_planner.data import Episode, EpisodeSource, EpisodeStore, StoreSpec
from sfvgen_planner.data.chunks import write_chunk
from sfvgen_planner.errors import SfvgenError

SPEC = StoreSpec("Test-v0", 1, (8, 6), (-1.0, -2.0), (1.0, 2.0), 3)


def make_episode(seed: int, steps: int = 20) -> Episode:
    generator = np.random.default_rng(seed)
    return Episode(
        frames=generator.integers(0, 256, (steps + 1, 8, 6, 3), dtype=np.uint8),
        actions=generator.uniform((-1, -2), (1, 2), (steps, 2)).astype(np.float32),
        instructions=["one"] * (steps // 2) + ["zwei ü"] * (steps - steps // 2),
        rewards=generator.normal(size=steps).astype(np.float32),
        terminated=bool(seed % 2),
        truncated=not seed % 2,
        seed=seed,
        proprio=generator.normal(size=(steps + 1, 3)).astype(np.float32),
        successes=None if seed == 3 else generator.random(steps) < 0.3,
        info={"success": True, "nested": {"list": [1, 2.5, None]}},
        source=EpisodeSource("expert", {"noise": 0.1}, {"level": 2}),
    )


def assert_equal(left: Episode, right: Episode) -> None:
    for name in ("frames", "actions", "rewards", "proprio"):
        a, b = getattr(left, name), getattr(right, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    if left.successes is None or right.successes is None:
        assert left.successes is right.successes
    else:
        assert left.successes.dtype == right.successes.dtype == np.bool_
        np.testing.assert_array_equal(left.successes, right.successes)
    for name in ("instructions", "terminated", "truncated", "seed", "info", "source"):
        assert getattr(left, name) == getattr(right, name)


def fill(path: Path, num_episodes: int) -> list[Episode]:
    episodes = [make_episode(seed, steps=7 + 40 * seed) for seed in range(num_episodes)]
    with EpisodeStore.create(path, SPEC) as store:
        for episode in episodes:
            store.append(episode)
    return episodes


def test_episodes_come_back_bit_for_bit(tmp_path: Path) -> None:
    episodes = fill(tmp_path / "store", 5)
    store = EpisodeStore.open(tmp_path / "store")
    assert store.spec == SPEC
    assert len(store) == 5
    for stored, episode in zip(store, episodes, strict=True):
        assert_equal(stored, episode)


def test_a_store_from_before_successes_were_recorded(tmp_path: Path) -> None:
    episodes = fill(tmp_path / "store", 2)
    index = tmp_path / "store/episodes.jsonl"
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    for line in lines:
        del line["successes"]
    index.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with EpisodeStore.open(tmp_path / "store", mode="a") as store:
        store.append(episodes[1])
    store = EpisodeStore.open(tmp_path / "store")
    assert [episode.successes is None for episode in store] == [True, True, False]
    assert_equal(store[0], replace(episodes[0], successes=None))
    assert_equal(store[2], episodes[1])


def test_zarr_itself_reads_the_arrays(tmp_path: Path) -> None:
    episodes = fill(tmp_path / "store", 3)
    store = EpisodeStore.open(tmp_path / "store")
    group = zarr.open_group(tmp_path / "store", mode="r")
    for entry, episode in zip(store.entries, episodes, strict=True):
        steps = entry.num_steps
        frames, actions = group["frames"], group["actions"]
        assert isinstance(frames, zarr.Array)
        assert isinstance(actions, zarr.Array)
        np.testing.assert_array_equal(frames[entry.row : entry.row + steps + 1], episode.frames)
        np.testing.assert_array_equal(actions[entry.row : entry.row + steps], episode.actions)


@pytest.mark.parametrize(("start", "num_frames"), [(0, 1), (0, 16), (15, 2), (14, 20), (3, 85)])
def test_window_is_a_slice_of_its_episode(tmp_path: Path, start: int, num_frames: int) -> None:
    episodes = fill(tmp_path / "store", 3)
    window = EpisodeStore.open(tmp_path / "store").window(2, start, num_frames)
    end = start + num_frames
    np.testing.assert_array_equal(window.frames, episodes[2].frames[start:end])
    np.testing.assert_array_equal(window.actions, episodes[2].actions[start : end - 1])
    assert window.instructions == episodes[2].instructions[start : end - 1]


@pytest.mark.parametrize(("start", "num_frames"), [(-1, 4), (0, 0), (5, 4)])
def test_window_outside_the_episode(tmp_path: Path, start: int, num_frames: int) -> None:
    fill(tmp_path / "store", 1)
    with pytest.raises(SfvgenError, match="frames 0 to 7"):
        EpisodeStore.open(tmp_path / "store").window(0, start, num_frames)


def test_all_black_frames_are_kept_apart_from_lost_ones(tmp_path: Path) -> None:
    episode = make_episode(0)
    episode.frames[:] = 0
    with EpisodeStore.create(tmp_path / "store", SPEC) as store:
        store.append(episode)
    assert not EpisodeStore.open(tmp_path / "store")[0].frames.any()
    (tmp_path / "store/frames/c/0/0/0/0").unlink()
    with pytest.raises(SfvgenError, match=r"frames of episode 0 .* damaged"):
        EpisodeStore.open(tmp_path / "store")[0]


@pytest.mark.parametrize("name", ["frames/c/0/0/0/0", "actions/c/0/0", "proprio/c/0/0"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_chunk_is_named(tmp_path: Path, name: str, damage: str) -> None:
    fill(tmp_path / "store", 2)
    chunk = tmp_path / "store" / name
    data = bytearray(chunk.read_bytes())
    if damage == "truncate":
        del data[-10:]
    elif damage == "flip":
        data[len(data) // 2] ^= 1
    else:
        data.clear()
    chunk.write_bytes(data)
    store = EpisodeStore.open(tmp_path / "store")
    with pytest.raises(SfvgenError, match=f"{name.split('/')[0]} of episode 0 .* damaged"):
        store[0]
    assert_equal(store[1], make_episode(1, 47))


def test_frames_of_another_episode_are_told(tmp_path: Path) -> None:
    """Such as from a copy that mixed two stores: each chunk is whole, and its own sum is right."""
    fill(tmp_path / "store", 2)
    chunks = tmp_path / "store/frames/c"
    shutil.copy(chunks / "8/0/0/0", chunks / "0/0/0/0")
    with pytest.raises(SfvgenError, match=r"frames of episode 0 .*their checksum differs"):
        EpisodeStore.open(tmp_path / "store")[0]


def test_torn_last_line_is_dropped_and_overwritten(tmp_path: Path) -> None:
    episodes = fill(tmp_path / "store", 3)
    index = tmp_path / "store/episodes.jsonl"
    index.write_bytes(index.read_bytes()[:-20])
    assert len(EpisodeStore.open(tmp_path / "store")) == 2
    with EpisodeStore.open(tmp_path / "store", mode="a") as store:
        assert len(store) == 2
        store.append(make_episode(7))
    store = EpisodeStore.open(tmp_path / "store")
    for stored, episode in zip(store, [*episodes[:2], make_episode(7)], strict=True):
        assert_equal(stored, episode)


def test_torn_chunk_behind_the_index_is_overwritten(tmp_path: Path) -> None:
    fill(tmp_path / "store", 2)
    index = tmp_path / "store/episodes.jsonl"
    first_line = index.read_bytes().splitlines(keepends=True)[0]
    index.write_bytes(first_line)
    for chunk in (tmp_path / "store").glob("*/c/**/*"):
        if chunk.is_file() and "/c/0" not in chunk.as_posix():
            chunk.write_bytes(b"torn")
    with EpisodeStore.open(tmp_path / "store", mode="a") as store:
        store.append(make_episode(9, 47))
    assert_equal(EpisodeStore.open(tmp_path / "store")[1], make_episode(9, 47))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(({name: value}, f"{name} is") for name in ("row", "seed") for value in ("a", None, 1.5)),
        ({"num_steps": "a"}, "num_steps is"),
        ({"num_steps": -3}, "instructions are not one for each of -3 steps"),
        ({"successes": []}, "successes are not one for each of"),
        ({"written_by": "a later release"}, "unexpected keyword argument 'written_by'"),
    ],
)
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_whole_line_with_wrong_values_is_an_error_wherever_it_stands(
    tmp_path: Path, number: int, mode: Literal["r", "a"], change: dict[str, object], words: str
) -> None:
    fill(tmp_path / "store", 2)
    index = tmp_path / "store/episodes.jsonl"
    lines = index.read_text().splitlines()
    lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | change)
    index.write_text("".join(f"{line}\n" for line in lines))
    damaged = index.read_bytes()
    with pytest.raises(SfvgenError, match=rf"line {number} of .*{words}"):
        EpisodeStore.open(tmp_path / "store", mode=mode)
    assert index.read_bytes() == damaged


def test_lines_whose_writing_was_interrupted_are_cut_off(tmp_path: Path) -> None:
    fill(tmp_path / "store", 2)
    index = tmp_path / "store/episodes.jsonl"
    with EpisodeStore.open(tmp_path / "store", mode="a") as store:
        with index.open("ab") as file:
            file.write(2 * index.read_bytes())
        store.append(make_episode(5))
    assert [episode.seed for episode in EpisodeStore.open(tmp_path / "store")] == [0, 1, 5]


def test_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path / "store", 3)
    index = tmp_path / "store/episodes.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(lines[0] + b"{}\n" + lines[2])
    with pytest.raises(SfvgenError, match=r"line 2 of .*episodes\.jsonl is damaged"):
        EpisodeStore.open(tmp_path / "store")


def test_append_after_reopening_and_reading_while_writing(tmp_path: Path) -> None:
    fill(tmp_path / "store", 1)
    with EpisodeStore.open(tmp_path / "store", mode="a") as writer:
        reader = EpisodeStore.open(tmp_path / "store")
        writer.append(make_episode(5))
        assert_equal(writer[1], make_episode(5))
        writer.commit()
        assert len(reader) == 1
        assert len(EpisodeStore.open(tmp_path / "store")) == 2
        writer.append(make_episode(6))
    assert len(EpisodeStore.open(tmp_path / "store")) == 3


def test_only_one_writer(tmp_path: Path) -> None:
    with (
        EpisodeStore.create(tmp_path / "store", SPEC),
        pytest.raises(SfvgenError, match="another process is writing"),
    ):
        EpisodeStore.open(tmp_path / "store", mode="a")
    with pytest.raises(SfvgenError, match="mode must be"):
        EpisodeStore.open(tmp_path / "store", mode="w")
    EpisodeStore.open(tmp_path / "store", mode="a").close()


def test_reading_mode_cannot_append(tmp_path: Path) -> None:
    fill(tmp_path / "store", 1)
    with pytest.raises(SfvgenError, match="open for reading"):
        EpisodeStore.open(tmp_path / "store").append(make_episode(0))


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def chunk_files(store: Path) -> set[Path]:
    return {path for path in store.glob("*/c/**/*") if path.is_file()}


def test_disk_that_is_full_in_mid_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has taken is freed: the lines of the episodes before it may need that room."""
    fill(tmp_path / "store", 2)
    with EpisodeStore.open(tmp_path / "store", mode="a") as store:
        store.append(make_episode(3))
        before = chunk_files(tmp_path / "store")
        replace_file, num_calls = os.replace, itertools.count()
        with monkeypatch.context() as patch:
            patch.setattr(
                "os.replace",
                lambda *paths: no_space() if next(num_calls) > 1 else replace_file(*paths),
            )
            with pytest.raises(SfvgenError, match=r"episode 3 .*No space left on device"):
                store.append(make_episode(4))
        assert chunk_files(tmp_path / "store") == before
        assert len(EpisodeStore.open(tmp_path / "store")) == 3
        store.append(make_episode(5))
    assert [episode.seed for episode in EpisodeStore.open(tmp_path / "store")] == [0, 1, 3, 5]


def test_index_lines_that_do_not_fit_cost_the_last_episodes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "store", 2)
    before = chunk_files(tmp_path / "store")
    fsync, num_chunks = os.fsync, []

    def full(file: int) -> None:
        num_chunks.append(len(chunk_files(tmp_path / "store") - before))
        if num_chunks[-1] > 10:
            no_space()
        fsync(file)

    with EpisodeStore.open(tmp_path / "store", mode="a") as store:
        for seed in (4, 5, 6, 7):
            store.append(make_episode(seed))
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(SfvgenError, match="the first 4 episodes are kept"):
            store.commit()
    # Each has two chunks of frames, and one of actions, rewards and proprio each.
    assert num_chunks == [20, 15, 10]
    assert [episode.seed for episode in EpisodeStore.open(tmp_path / "store")] == [0, 1, 4, 5]


def test_nothing_of_an_episode_that_failed_is_written_over_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_or_slow(path: str, values: np.ndarray, num_rows: int) -> None:
        if "/frames/" in path:
            no_space()
        time.sleep(0.1)
        write_chunk(path, values, num_rows)

    with EpisodeStore.create(tmp_path / "store", SPEC) as store:
        with monkeypatch.context() as patch:
            patch.setattr("sfvgen_planner.data.store.write_chunk", full_or_slow)
            with pytest.raises(SfvgenError, match="No space left"):
                store.append(make_episode(4))
        store.append(make_episode(5))
    assert_equal(EpisodeStore.open(tmp_path / "store")[0], make_episode(5))


def test_disk_that_is_full_at_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "store", 2)
    with EpisodeStore.open(tmp_path / "store", mode="a") as store:
        store.append(make_episode(3))
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", no_space)
            with pytest.raises(SfvgenError, match="the first 2 episodes are kept"):
                store.commit()
        assert len(store) == 2
        store.append(make_episode(4))
    store = EpisodeStore.open(tmp_path / "store")
    assert len(store) == 3
    assert_equal(store[2], make_episode(4))


def test_episode_of_other_sizes_is_refused(tmp_path: Path) -> None:
    small = StoreSpec("Test-v0", 1, (4, 4), (-1.0, -2.0), (1.0, 2.0), 3)
    with (
        EpisodeStore.create(tmp_path / "store", small) as store,
        pytest.raises(SfvgenError, match=r"image size \(8, 6\), but the store holds .*\(4, 4\)"),
    ):
        store.append(make_episode(0))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("actions", np.nan, "actions that are not finite or outside of"),
        ("actions", 2.5, r"outside of \[-1.0, -2.0\] to \[1.0, 2.0\]"),
        ("rewards", np.inf, "seed 0 has the reward inf at step 3"),
    ],
)
def test_numbers_that_nothing_can_learn_from_are_refused(
    tmp_path: Path, name: str, value: float, words: str
) -> None:
    episode = make_episode(0)
    getattr(episode, name)[3] = value
    with EpisodeStore.create(tmp_path / "store", SPEC) as store:
        with pytest.raises(SfvgenError, match=words):
            store.append(episode)
        store.append(make_episode(1))
    assert_equal(EpisodeStore.open(tmp_path / "store")[0], make_episode(1))


class TestForeignFolders:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(SfvgenError, match="it does not exist"):
            EpisodeStore.open(tmp_path / "nothing")

    def test_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(SfvgenError, match=r"is no episode store \(it has no zarr\.json\)"):
            EpisodeStore.open(tmp_path)
        with pytest.raises(SfvgenError, match="not empty"):
            EpisodeStore.create(tmp_path, SPEC)
        assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]

    def test_other_zarr(self, tmp_path: Path) -> None:
        zarr.create_group(tmp_path / "other")
        with pytest.raises(SfvgenError, match="a zarr store, but not of episodes"):
            EpisodeStore.open(tmp_path / "other")

    def test_other_version(self, tmp_path: Path) -> None:
        fill(tmp_path / "store", 1)
        group = zarr.open_group(tmp_path / "store")
        group.attrs["version"] = 99
        with pytest.raises(SfvgenError, match="version 99"):
            EpisodeStore.open(tmp_path / "store")

    def test_truncated_description(self, tmp_path: Path) -> None:
        fill(tmp_path / "store", 1)
        description = tmp_path / "store/zarr.json"
        description.write_bytes(description.read_bytes()[:40])
        with pytest.raises(SfvgenError, match=r"cannot read .*zarr\.json"):
            EpisodeStore.open(tmp_path / "store")

    @pytest.mark.parametrize("name", ["frames", "rewards"])
    @pytest.mark.parametrize("content", [None, "[]", "5", "{"])
    def test_array_without_its_description(
        self, tmp_path: Path, name: str, content: str | None
    ) -> None:
        fill(tmp_path / "store", 1)
        description = tmp_path / "store" / name / "zarr.json"
        description.unlink()
        if content is not None:
            description.write_text(content)
        with pytest.raises(SfvgenError, match=f"{name}/zarr.json is missing or unreadable"):
            EpisodeStore.open(tmp_path / "store")

    def test_missing_index(self, tmp_path: Path) -> None:
        fill(tmp_path / "store", 1)
        (tmp_path / "store/episodes.jsonl").unlink()
        for mode in ("r", "a"):
            with pytest.raises(SfvgenError, match="cannot open the episode store"):
                EpisodeStore.open(tmp_path / "store", mode=mode)  # type: ignore[arg-type]


class TestEpisode:
    def test_lengths_must_fit(self) -> None:
        with pytest.raises(SfvgenError, match="needs 4 frames, but has 6"):
            Episode(
                frames=np.zeros((6, 8, 8, 3), np.uint8),
                actions=np.zeros((3, 2), np.float32),
                instructions=[""] * 3,
                rewards=np.zeros(3, np.float32),
                terminated=False,
                truncated=True,
                seed=0,
            )

    @pytest.mark.parametrize(
        ("successes", "message"),
        [
            (np.zeros(4, np.bool_), "needs 3 successes, but has 4"),
            (np.zeros(3, np.float32), "successes must be bool, but they are float32"),
        ],
    )
    def test_successes_must_fit(self, successes: np.ndarray, message: str) -> None:
        with pytest.raises(SfvgenError, match=message):
            replace(make_episode(0, steps=3), successes=successes)

    def test_frames_must_be_bytes(self) -> None:
        with pytest.raises(SfvgenError, match="frames must be uint8"):
            Episode(
                frames=np.zeros((4, 8, 8, 3), np.float32),  # type: ignore[arg-type]
                actions=np.zeros((3, 2), np.float32),
                instructions=[""] * 3,
                rewards=np.zeros(3, np.float32),
                terminated=False,
                truncated=True,
                seed=0,
            )
