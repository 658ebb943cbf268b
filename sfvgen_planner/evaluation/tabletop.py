"""What evaluations know of ``sfvgen/TabletopReturn-v0`` beyond its Gymnasium interface."""

from __future__ import annotations

from typing import Any

import numpy as np

from sfvgen_planner.data.environment import Environment
from sfvgen_planner.data.episode import Episode

ENV_ID = "sfvgen/TabletopReturn-v0"
CUBE_COLOURS = ("red", "green", "blue", "yellow")
CUBE_CENTRE_HEIGHT = 0.021
"""Height of the centre of a cube that stands on the table [m]."""


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
    return _centroid(np.minimum(red, blue) - green, _PURPLE_THRESHOLD)


def locate_cube(frames: np.ndarray, colour: str) -> np.ndarray:
    """Find a cube in pictures, real or imagined.

    Args:
        frames: ``(..., H, W, 3)`` uint8.
        colour: one of the environment's cube colours: red, green, blue, yellow.

    Returns:
        ``(..., 2)``: x to the right and y down in pixels, the centroid of what is seen of it; NaN
        where there is nothing of its colour.
    """
    red, green, blue = np.moveaxis(frames.astype(np.float64), -1, 0)
    vividness = {
        "red": red - np.maximum(green, blue),
        "green": green - np.maximum(red, blue),
        "blue": blue - np.maximum(red, green),
        "yellow": np.minimum(red, green) - blue,
    }
    return _centroid(vividness[colour], _VIVID_THRESHOLD)


def project(env: Environment, point: np.ndarray) -> np.ndarray:
    """Where the environment's camera shows a point.

    Args:
        env: a ``sfvgen/TabletopReturn-v0`` that was reset.
        point: ``(..., 3)`` in metres, in the simulator's frame.

    Returns:
        ``(..., 2)``: x to the right and y down, in the units of `locate_cube`: pixels of the
        observed image, whose corner is (0, 0).
    """
    tabletop: Any = env.unwrapped
    camera = tabletop.data.camera("front")
    height, width = tabletop.observation_space["image"].shape[:2]
    # The camera looks along its own -z, with y up.
    right, up, back = np.moveaxis((point - camera.xpos) @ camera.xmat.reshape(3, 3), -1, 0)
    fovy = np.radians(tabletop.model.camera("front").fovy[0])
    scale = height / 2 / np.tan(fovy / 2) / -back
    return np.stack([width / 2 + scale * right, height / 2 - scale * up], axis=-1)


def _centroid(strength: np.ndarray, threshold: float) -> np.ndarray:
    """Centre ``(..., 2)`` of the pixels ``(..., H, W)`` above a threshold, weighted by strength."""
    weight = np.where(strength > threshold, strength, 0.0)
    total = weight.sum(axis=(-2, -1))
    x, y = (np.arange(size) + 0.5 for size in (strength.shape[-1], strength.shape[-2]))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([(weight.sum(-2) @ x) / total, (weight.sum(-1) @ y) / total], axis=-1)


_PURPLE_THRESHOLD = 40.0
_VIVID_THRESHOLD = 75.0
"""Pads have the cubes' hues, but stay below this."""


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


def way_to_go_m(simulator: Any, reward: float, info: dict[str, Any]) -> float:
    """What is left of the present instruction after a step, for a search in the simulator itself.

    The metres of the cube to its place and, at half the weight, of the gripper to the cube; once
    the cube stands there, of the gripper to the height at which the instruction counts as achieved.
    A cube not yet placed costs a constant more than any rise, so that letting go pays.

    Args:
        simulator: the unwrapped environment after the step.
        reward: of the step, not used.
        info: of the step.
    """
    gripper = simulator.gripper_position
    if info["success"]:
        return _GRIPPER_WEIGHT * max(0.0, _CLEAR_HEIGHT - float(gripper[2]))
    reach = float(np.linalg.norm(gripper - simulator.cube_position(simulator.instruction.cube)))
    return _NOT_PLACED + float(info["distance_m"]) + _GRIPPER_WEIGHT * reach


_CLEAR_HEIGHT = 0.09
_GRIPPER_WEIGHT = 0.5
_NOT_PLACED = 0.1


def needs_memory(instruction: str) -> bool:
    """Whether an instruction speaks of a place that is not in the present picture."""
    return instruction.startswith("return ") or instruction.endswith(" where it was before")


def moves_succeeded(episode: Episode) -> bool:
    """Whether every move before the recall succeeded, so that there was something to return."""
    return all(result["success"] for result in episode.info["instruction_results"][:-1])
