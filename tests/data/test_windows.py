from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest

from sfvgen_planner.data import EpisodeStore, WindowSampler, collect, load_all
from sfvgen_planner.errors import SfvgenError
from tests.data.counting_env import (
    COUNTING,
    SCRIPTED,
    expected_actions,
    expected_frame,
    expected_success,
    num_steps,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    out = tmp_path_factory.mktemp("windows") / "store"
    return collect(COUNTING, SCRIPTED, 9, out, progress=False)


def test_load_all_equals_the_episodes(store: EpisodeStore) -> None:
    arrays = load_all(store)
    assert len(arrays) == 9
    assert arrays.num_steps == [num_steps(seed) for seed in range(9)]
    for index, episode in enumerate(store):
        rows = slice(arrays.offsets[index], arrays.offsets[index + 1])
        np.testing.assert_array_equal(arrays.frames[rows], episode.frames)
        np.testing.assert_array_equal(arrays.actions[rows][:-1], episode.actions)
        np.testing.assert_array_equal(arrays.rewards[rows][:-1], episode.rewards)
        np.testing.assert_array_equal(arrays.proprio[rows], episode.proprio)
        texts = [arrays.instructions[i] for i in arrays.instruction_ids[rows][:-1]]
        assert texts == episode.instructions
        assert not arrays.actions[rows][-1].any()
        assert arrays.instruction_ids[rows][-1] == -1


def test_load_all_tells_known_successes_from_unknown_ones(tmp_path: Path) -> None:
    for kwargs in ({}, {"success_key": "success"}):
        store = collect(COUNTING, SCRIPTED, 2, tmp_path / "s", env_kwargs=kwargs, progress=False)
    known = [[*map(expected_success, range(1, num_steps(seed) + 1)), -1] for seed in range(2)]
    unknown = [[-1] * (num_steps(seed) + 1) for seed in range(2)]
    assert load_all(store).successes.tolist() == [*chain(*unknown, *known)]


def test_windows_are_what_the_environment_showed(store: EpisodeStore) -> None:
    for window in islice(WindowSampler(store, num_past=2, num_future=3, seed=1), 50):
        seed, first = int(window.frames[0, 0, 0, 0]), int(window.frames[0, 0, 0, 1])
        actions = expected_actions(seed)
        np.testing.assert_array_equal(window.actions, actions[first : first + 4])
        for offset, frame in enumerate(window.frames[1:], start=1):
            expected = expected_frame(seed, first + offset, actions[first + offset - 1])
            np.testing.assert_array_equal(frame, expected)
        # The generated frames are led to by the actions of steps first + 1 to first + 3.
        asked = {"begin" if step < 3 else "go on" for step in range(first + 1, first + 4)}
        assert window.instruction == (asked.pop() if len(asked) == 1 else "")


def test_disk_and_memory_give_the_same_windows(store: EpisodeStore) -> None:
    from_disk = WindowSampler(store, 4, 8, seed=3)
    from_memory = WindowSampler(load_all(store), 4, 8, seed=3)
    assert len(from_disk) == len(from_memory) == sum(max(0, num_steps(s) - 10) for s in range(9))
    for _ in range(20):
        left, right = from_disk.sample(), from_memory.sample()
        np.testing.assert_array_equal(left.frames, right.frames)
        np.testing.assert_array_equal(left.actions, right.actions)
        assert left.instruction == right.instruction


def test_every_window_is_drawn_equally_often(store: EpisodeStore) -> None:
    sampler = WindowSampler(store, 4, 8, seed=0)
    keys = [sampler[i].frames[0, 0, 0].tolist() for i in range(len(sampler))]
    assert len({tuple(key) for key in keys}) == len(sampler)
    counts = dict.fromkeys(map(tuple, keys), 0)
    memory = WindowSampler(load_all(store), 4, 8, seed=0)
    draws = 200 * len(sampler)
    for window in islice(memory, draws):
        counts[tuple(window.frames[0, 0, 0].tolist())] += 1
    # A fair draw strays from its mean of 200 by less than 5 standard deviations.
    assert all(abs(count - 200) < 5 * 200**0.5 for count in counts.values())


def test_too_long_windows(store: EpisodeStore) -> None:
    with pytest.raises(SfvgenError, match=r"windows of 40 frames .* the longest episode has 20"):
        WindowSampler(store, 20, 20)
    with pytest.raises(SfvgenError, match="at least 1 past"):
        WindowSampler(store, 0, 8)
    with pytest.raises(SfvgenError, match="there is no window"):
        load_all(store).window(0, 0, 7)
