"""What evaluations know of ``sfvgen/TabletopReturn-v0`` beyond its Gymnasium interface."""

from __future__ import annotations

import numpy as np

from sfvgen_planner.data.episode import Episode

ENV_ID = "sfvgen/TabletopReturn-v0"


def locate_gripper(frames: np.ndarray) -> np.ndarray:
    """Find the gripper's purple palm in pictures, real or imagined.

    Args:
        frames: ``(..., H, W, 3)`` uint8.

    Returns:
        ``(..., 2)``: x to the right and y down in pixels, the centroid of the purple pixels; NaN
        where there is no purple.
    """
    red, green, blue = np.moveaxis(frames.astype(np.float64), -1, 0)
    # How far a pixel is purple: red and blue, but not green. Pads and cubes have no such colour.
    purple = np.minimum(red, blue) - green
    weight = np.where(purple > _PURPLE_THRESHOLD, purple, 0.0)
    total = weight.sum(axis=(-2, -1))
    x = np.arange(frames.shape[-2]) + 0.5
    y = np.arange(frames.shape[-3]) + 0.5
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([(weight.sum(-2) @ x) / total, (weight.sum(-1) @ y) / total], axis=-1)


_PURPLE_THRESHOLD = 40.0


def recall_distance_m(episode: Episode) -> float:
    """Metres from the returned cube to the place asked for: the last instruction's result."""
    return float(episode.info["instruction_results"][-1]["distance_m"])


def waypoint_distance_m(episode: Episode) -> float:
    """Mean over all instructions of the metres that were left to the place asked for.

    This is the paper's measure. Unlike the recall's distance it cannot be had by leaving the cube
    where it stands.
    """
    results = episode.info["instruction_results"]
    return float(np.mean([result["distance_m"] for result in results]))


def moves_succeeded(episode: Episode) -> bool:
    """Whether every move before the recall succeeded, so that there was something to return."""
    return all(result["success"] for result in episode.info["instruction_results"][:-1])
