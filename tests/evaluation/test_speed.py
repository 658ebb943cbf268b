"""That speed is measured, and with what it is told; how fast it is, no test says."""

import json

import pytest

from sfvgen_planner.evaluation.measure import measure
from sfvgen_planner.evaluation.speed import FIGURES, SpeedConfig


def test_chunks_and_plans_are_timed(tmp_path, tiny_checkpoint):
    config = SpeedConfig.of(str(tiny_checkpoint), "cpu", num_episodes=1)
    assert config.num_timed_runs == 1
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
