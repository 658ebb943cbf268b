import sys
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector.episode_buffer import EpisodeBuffer

from sfvgen_planner.data import EpisodeStore, collect
from sfvgen_planner.data.minari_io import from_minari, to_minari
from sfvgen_planner.errors import SfvgenError
from tests.data.counting_env import COUNTING, SCRIPTED, expected_success

ID = "sfvgen/counting-v0"


@pytest.fixture(autouse=True)
def minari_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    return collect(COUNTING, SCRIPTED, 40, tmp_path / "store", progress=False)


def test_minari_reads_the_same_bits(store: EpisodeStore) -> None:
    to_minari(store, ID, progress=False)
    dataset = minari.load_dataset(ID)
    assert dataset.total_episodes == len(store)
    assert dataset.total_steps == sum(store.num_steps)
    for data, episode in zip(dataset, store, strict=True):
        np.testing.assert_array_equal(data.observations["image"], episode.frames)
        np.testing.assert_array_equal(data.observations["proprio"], episode.proprio)
        np.testing.assert_array_equal(data.actions, episode.actions)
        np.testing.assert_array_equal(data.rewards, episode.rewards)
        assert data.terminations.tolist() == [False] * (len(episode) - 1) + [True]
        assert not data.truncations.any()
        texts = [text.decode() for text in data.infos["instruction"]]
        assert texts[:-1] == episode.instructions
        assert dataset.action_space.contains(data.actions[0])
        assert dataset.observation_space["image"].contains(data.observations["image"][0])


def test_minari_makes_the_environment_again(tmp_path: Path) -> None:
    store = collect(
        COUNTING, SCRIPTED, 1, tmp_path / "s", env_kwargs={"size": 6}, frame_skip=2, progress=False
    )
    to_minari(store, ID, progress=False)
    env = minari.load_dataset(ID).recover_environment()
    env.reset(seed=0)
    observation, *_ = env.step(np.zeros(2, np.float32))
    np.testing.assert_array_equal(observation, [0, 2])
    assert env.unwrapped.size == 6  # type: ignore[attr-defined]
    env.close()


def test_environment_that_cannot_be_described_is_left_out(tmp_path: Path) -> None:
    env_id = COUNTING.replace("Counting-v0", "CountingClass-v0")
    store = collect(env_id, SCRIPTED, 1, tmp_path / "store", progress=False)
    to_minari(store, ID, progress=False)
    assert minari.load_dataset(ID).env_spec is None
    assert from_minari(ID, tmp_path / "back", progress=False).entries == store.entries


def test_round_trip_is_exact(store: EpisodeStore, tmp_path: Path) -> None:
    to_minari(store, ID, progress=False)
    back = from_minari(ID, tmp_path / "back", progress=False)
    assert back.spec == store.spec
    # Rows, checksums, instructions, seeds, info and sources.
    assert back.entries == store.entries
    for left, right in zip(back, store, strict=True):
        for name in ("frames", "actions", "rewards", "proprio"):
            a, b = getattr(left, name), getattr(right, name)
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_successes_stand_with_the_frame_that_shows_them(tmp_path: Path) -> None:
    for kwargs in ({}, {"success_key": "success"}):
        store = collect(COUNTING, SCRIPTED, 2, tmp_path / "s", env_kwargs=kwargs, progress=False)
    to_minari(store, ID, progress=False)
    infos = [episode.infos for episode in minari.load_dataset(ID)]
    assert ["success" in info for info in infos] == [False, False, True, True]
    for info in infos[2:]:
        told = [False, *map(expected_success, range(1, len(info["success"])))]
        assert info["success"].tolist() == told
    assert from_minari(ID, tmp_path / "back", progress=False).entries == store.entries


def test_foreign_dataset(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 7, 10, 12, 3), dtype=np.uint8)
    actions = rng.uniform(-2, 2, (2, 6, 3))
    minari.create_dataset_from_buffers(
        "foreign-v3",
        [
            EpisodeBuffer(
                observations=f,
                actions=a,
                rewards=[1.0] * 6,
                terminations=[False] * 6,
                truncations=[False] * 5 + [True],
            )
            for f, a in zip(frames, actions, strict=True)
        ],
        observation_space=gym.spaces.Box(0, 255, (10, 12, 3), np.uint8),
        action_space=gym.spaces.Box(-2, 2, (3,), np.float64),
        jpeg_encoding=False,
    )
    store = from_minari("foreign-v3", tmp_path / "store", progress=False)
    assert store.spec.image_size == (10, 12)
    assert store.spec.action_high == (2.0, 2.0, 2.0)
    for number, episode in enumerate(store):
        np.testing.assert_array_equal(episode.frames, frames[number])
        np.testing.assert_array_equal(episode.actions, actions[number].astype(np.float32))
        assert episode.instructions == [""] * 6
        assert episode.truncated
        assert episode.proprio is None


def test_dataset_without_pictures(tmp_path: Path) -> None:
    minari.create_dataset_from_buffers(
        "vectors-v0",
        [
            EpisodeBuffer(
                observations=np.zeros((3, 4)),
                actions=np.zeros((2, 1)),
                rewards=[0.0] * 2,
                terminations=[False] * 2,
                truncations=[False, True],
            )
        ],
        observation_space=gym.spaces.Box(-1, 1, (4,)),
        action_space=gym.spaces.Box(-1, 1, (1,)),
    )
    with pytest.raises(SfvgenError, match="has no RGB pictures"):
        from_minari("vectors-v0", tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


def test_wrong_names(store: EpisodeStore, tmp_path: Path, minari_folder: Path) -> None:
    for name in ("", "no version", "../outside-v0"):
        with pytest.raises(SfvgenError, match="is no name of a Minari dataset"):
            to_minari(store, name, progress=False)
    with pytest.raises(SfvgenError, match="there is no Minari dataset 'sfvgen/counting-v0'"):
        from_minari(ID, tmp_path / "back", progress=False)
    to_minari(store, ID, progress=False)
    with pytest.raises(SfvgenError, match="has a dataset 'sfvgen/counting-v0' already"):
        to_minari(store, ID, progress=False)
    with pytest.raises(SfvgenError, match="not empty"):
        from_minari(ID, store.path, progress=False)


def test_what_is_no_dataset_is_left_alone(store: EpisodeStore, minari_folder: Path) -> None:
    notes = minari_folder / ID / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    with pytest.raises(SfvgenError, match="no Minari dataset; move it away"):
        to_minari(store, ID, progress=False)
    assert notes.read_text() == "mine"


def test_failure_leaves_nothing_behind(
    store: EpisodeStore, minari_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next(store.path.glob("frames/c/*/0/0/0")).unlink()
    with pytest.raises(SfvgenError, match="damaged"):
        to_minari(store, ID, progress=False)
    assert not list(minari_folder.glob("**/data"))


def test_minari_is_not_installed(store: EpisodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(SfvgenError, match=r"pip install 'sfvgen-planner\[minari\]'"):
        to_minari(store, ID, progress=False)
