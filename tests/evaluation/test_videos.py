"""Videos and pictures, read back by another library's decoder."""

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from sfvgen_planner.evaluation.videos import (
    imagined_frames,
    side_by_side,
    write_film_strip,
    write_mp4,
)
from sfvgen_planner.planning.plan import Plan
from sfvgen_planner.planning.policy import PlanRecord


def grey(levels, size=64):
    frames = np.asarray(levels, np.uint8)[:, None, None, None]
    return np.broadcast_to(frames, (len(levels), size, size, 3)).copy()


def test_each_moment_shows_what_the_plan_in_force_imagined():
    real = grey(range(7))
    plans = [
        PlanRecord(0, "a", Plan(np.zeros((4, 1)), grey([101, 102, 103, 104])), 0.0, 1),
        PlanRecord(2, "b", Plan(np.zeros((8, 1)), grey(range(203, 211))), 0.0, 1),
    ]
    shown = imagined_frames(real, plans)[:, 0, 0, 0]
    assert shown.tolist() == [0, 101, 102, 203, 204, 205, 206]


def test_mp4_is_h264_with_imagined_left_and_real_right(tmp_path):
    frames = side_by_side(grey([50] * 5), grey([200] * 5), ["put it there"] * 5)
    path = tmp_path / "a.mp4"
    write_mp4(path, frames)
    read = iio.imread(path, plugin="pyav")
    assert read.shape == frames.shape
    assert read.shape[1] % 2 == read.shape[2] % 2 == 0
    assert read[:, -20, 100].mean() == pytest.approx(50, abs=3)
    assert read[:, -20, -100].mean() == pytest.approx(200, abs=3)
    meta = iio.immeta(path, plugin="pyav")
    assert meta["codec"] == "h264"
    assert list(tmp_path.iterdir()) == [path]


def test_film_strip(tmp_path):
    path = tmp_path / "a.png"
    write_film_strip(path, grey([50] * 20), grey([200] * 20), ["a"] * 10 + ["b"] * 10)
    picture = np.asarray(Image.open(path))
    # 8 moments of 128x128 pixels; the letters' edges may hold a pixel of any grey.
    for level in (50, 200):
        assert (picture == level).all(-1).sum() == pytest.approx(8 * 128**2, abs=20)
