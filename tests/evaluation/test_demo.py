"""The demo end to end with a model of random weights."""

import json
import re

import imageio.v3 as iio
import pytest

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation.demo import DemoConfig, run_demo
from sfvgen_planner.evaluation.report import finding
from sfvgen_planner.planning import CEMConfig

CEM = CEMConfig(num_samples=4, num_elites=2, num_iterations=1, num_kept_elites=0)


@pytest.fixture(scope="module")
def demo(tiny_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    config = DemoConfig(out, model=str(tiny_checkpoint), num_episodes=1, cem=CEM)
    return out, run_demo(config)


def test_summary_has_every_figure(demo):
    out, returned = demo
    summary = json.loads((out / "summary.json").read_text())
    assert summary == json.loads(json.dumps(returned))
    for arm in ("memory_on", "memory_off"):
        part = summary[arm]
        assert part["episodes"] == len(part["seeds"]) == 1
        assert part["seeds"] == [100_000]
        assert 0 <= part["success_rate"] <= 1
        assert part["mean_distance_m"] >= 0
        for name in ("success_rate", "mean_distance_m", "mean_waypoint_distance_m"):
            low, high = part["ci95"][name]
            assert low <= part.get(name) <= high
    assert summary["seconds_per_plan"] > 0
    assert summary["seconds_per_memory_write"] > 0
    assert summary["peak_memory_mb"] > 100
    assert {"model", "git_commit", "command", "machine", "seconds"} <= set(summary)
    # The level-1 episode has a move and a recall of at most 32 steps each.
    assert summary["memory_on"]["steps"][0] <= 64


def test_videos_play_for_as_long_as_the_episode(demo):
    out, summary = demo
    assert len(summary["videos"]) == 2
    for video in summary["videos"]:
        frames = iio.imread(out / video["file"], plugin="pyav")
        assert len(frames) == summary[video["arm"]]["steps"][0] + 1


def test_report_needs_no_network(demo):
    out, summary = demo
    html = (out / "report.html").read_text()
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]*", "", html))
    assert html.count("data:video/mp4;base64,") == 2
    assert summary["machine"] in html
    assert finding(summary).split(";")[0].split(",")[0] in html


def test_nothing_temporary_is_left(demo):
    out, summary = demo
    names = {video["file"] for video in summary["videos"]}
    assert {p.name for p in out.iterdir()} == {"summary.json", "report.html", "poster.png", *names}


@pytest.mark.parametrize(
    ("bad", "message"),
    [({"num_episodes": 0}, "episode"), ({"level": 5}, "level"), ({"seed": -1}, "seed")],
)
def test_bad_settings_are_refused(tmp_path, bad, message):
    with pytest.raises(SfvgenError, match=message):
        DemoConfig(tmp_path, **bad)


def summary(on, off, paired):
    arm = {"episodes": 40, "seeds": list(range(40))}
    return {
        "memory_on": {**arm, "mean_distance_m": on},
        "memory_off": {**arm, "mean_distance_m": off},
        "paired_difference_m": paired,
    }


@pytest.mark.parametrize(
    ("ci95", "verdict"),
    [
        ([-0.05, -0.01], "the memory helped"),
        ([0.01, 0.05], "made it worse"),
        ([-0.02, 0.01], "no difference"),
    ],
)
def test_the_finding_follows_the_interval(ci95, verdict):
    paired = {"mean": sum(ci95) / 2, "ci95": ci95, "episodes": 40, "seeds": []}
    told = finding(summary(0.05, 0.08, paired))
    assert verdict in told
    assert "5.0 cm" in told
    assert "8.0 cm" in told


def test_the_finding_says_so_when_nothing_was_moved():
    assert "says nothing about the memory" in finding(summary(0.0, 0.0, None))
