"""That speed is measured, and with what it is told; how fast it is, no test says."""

import itertools
import json

import pytest

from sfvgen_planner.evaluation import speed
from sfvgen_planner.evaluation.measure import measure
from sfvgen_planner.evaluation.speed import FIGURES, SpeedConfig
from sfvgen_planner.imagination import WorldModelVectorEnv


def test_many_worlds_are_timed_against_one(tmp_path, tiny_checkpoint, monkeypatch):
    """Of a clock that counts steps of worlds, many at once cost as much as one each."""
    ticks = itertools.count()
    step = WorldModelVectorEnv.step

    def counted(self, actions):
        for _ in range(self.num_envs):
            next(ticks)
        return step(self, actions)

    def timed(work, config, what):
        before = next(ticks)
        work()
        return [next(ticks) - before - 1]

    monkeypatch.setattr(WorldModelVectorEnv, "step", counted)
    monkeypatch.setattr(speed, "timed", timed)
    monkeypatch.setattr(speed, "NUM_ENVS", 3)
    config = SpeedConfig.of(str(tiny_checkpoint), "cpu", 1)
    (figure,) = measure(tmp_path / "a.json", config, FIGURES, ["vector_env_speedup"])
    assert (figure.value, figure.fields["num_envs"]) == (1.0, 3)


def test_chunks_and_plans_are_timed(tmp_path, tiny_checkpoint):
    config = SpeedConfig.of(str(tiny_checkpoint), "cpu", num_episodes=1)
    assert config.num_timed_runs == 1
    more = SpeedConfig.of(str(tiny_checkpoint), "cpu", num_episodes=100)
    assert more.num_timed_runs == SpeedConfig().num_timed_runs
    measure(tmp_path / "a.json", config, FIGURES, ["frames_per_second_b1", "plan_seconds"])
    rows = {row["name"]: row for row in json.loads((tmp_path / "a.json").read_text())["figures"]}
    assert set(rows) == {
        "frames_per_second_b1",
        "chunk_ms_b1",
        "cpu_plan_seconds",
        "cpu_video_plan_seconds",
    }
    # 8 frames in so many milliseconds.
    frames = rows["frames_per_second_b1"]["value"] * rows["chunk_ms_b1"]["value"] / 1e3
    assert frames == pytest.approx(8)
