"""Where imagined episodes begin."""

import numpy as np
import pytest
from sfvgen_policies.random import RandomPolicy

from sfvgen_planner.data import Episode, EpisodeSource, EpisodeStore, StoreSpec, load_all
from sfvgen_planner.data.rollout import EpisodeRecorder, record_episode
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import EnvStarts, ImaginationWrapper, Start, StoreStarts
from tests.point_mass import SIZE, PointMassEnv, PointMassWorldModel, RecordingMemory, draw

SPEC = StoreSpec("Test-v0", 1, (16, 16), (-1.0, -1.0), (1.0, 1.0))


def test_an_env_start_is_its_first_frame_and_instruction():
    env = PointMassEnv()
    start = EnvStarts(env)(np.random.default_rng(0))
    assert np.array_equal(start.frames, draw(env.position)[None])
    assert start.instruction == "right"
    again = EnvStarts(env)(np.random.default_rng(0))
    assert np.array_equal(start.frames, again.frames)
    other = EnvStarts(env)(np.random.default_rng(1))
    assert not np.array_equal(start.frames, other.frames)
    assert EnvStarts(env, 64)(np.random.default_rng(0)).frames.shape == (1, 64, 64, 3)


class Silent(PointMassEnv):
    """Says that there is no instruction."""

    def _info(self):
        return {"instruction": None}


def test_no_instruction_is_not_the_word_none():
    assert EnvStarts(Silent())(np.random.default_rng(0)).instruction == ""
    assert EpisodeRecorder(Silent(), 0, EpisodeSource()).instruction == ""
    model = PointMassWorldModel()
    memory = RecordingMemory(model)
    imagination = ImaginationWrapper(Silent(), model, memory, measure_writes=False)
    imagination.reset(seed=0)
    for _ in range(8):
        imagination.step(np.zeros(2, np.float32))
    assert memory.instructions == [""]


class Redrawing(PointMassEnv):
    """Draws each picture into the same memory, and measures into the same, too."""

    def __init__(self):
        super().__init__()
        self.picture = np.zeros((SIZE, SIZE, 3), np.uint8)
        self.measured = np.zeros(2, np.float32)

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        self.measured[:] = observation
        return self.measured, info

    def step(self, action):
        observation, *rest = super().step(action)
        self.measured[:] = observation
        return self.measured, *rest

    def render(self):
        self.picture[:] = super().render()
        return self.picture


def test_what_an_environment_writes_over_is_kept_as_it_was():
    for env in (PointMassEnv(), Redrawing()):
        start = EnvStarts(env)(np.random.default_rng(0))
        first = draw(env.position)
        episode = record_episode(env, RandomPolicy(env), 0, EpisodeSource())
        assert np.array_equal(start.frames, first[None])
        assert np.array_equal(episode.frames, draw(episode.proprio))
        imagination = ImaginationWrapper(env, PointMassWorldModel())
        imagination.reset(seed=0)
        for action in episode.actions[:3]:
            imagination.step(action)
        assert np.array_equal(imagination.past_frames, episode.frames[:4])


@pytest.fixture
def store(tmp_path):
    """Two episodes whose frames and instructions tell which and when."""
    with EpisodeStore.create(tmp_path / "store", SPEC) as store:
        for index, steps in enumerate((3, 7)):
            values = 100 * index + np.arange(steps + 1)
            store.append(
                Episode(
                    frames=np.broadcast_to(
                        values[:, None, None, None], (steps + 1, 16, 16, 3)
                    ).astype(np.uint8),
                    actions=np.zeros((steps, 2), np.float32),
                    instructions=[str(value) for value in values[:-1]],
                    rewards=np.zeros(steps, np.float32),
                    terminated=False,
                    truncated=True,
                    seed=index,
                )
            )
        yield store


def test_a_store_start_is_a_recorded_moment(store):
    for source in (store, load_all(store)):
        starts = StoreStarts(source, num_past_frames=4)
        rng = np.random.default_rng(0)
        drawn = [starts(rng) for _ in range(200)]
        seen = set()
        for start in drawn:
            values = start.frames[:, 0, 0, 0].astype(int)
            present = values[-1]
            assert start.instruction == str(present)
            first = 100 * (present // 100)
            assert values.tolist() == list(range(max(first, present - 3), present + 1))
            seen.add(int(present))
        # Every frame that was acted on; the last one of an episode was not.
        assert seen == {0, 1, 2, *range(100, 107)}


def test_bad_starts_are_refused(store, tmp_path):
    with pytest.raises(SfvgenError, match="num_past_frames"):
        StoreStarts(store, 0)
    with pytest.raises(SfvgenError, match="without episodes"):
        StoreStarts(EpisodeStore.create(tmp_path / "empty", SPEC), 4)
    for frames in (np.zeros((0, 8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(SfvgenError, match="f >= 1"):
            Start(frames)
    with pytest.raises(SfvgenError, match="uint8"):
        Start(np.zeros((1, 8, 8, 3)))
