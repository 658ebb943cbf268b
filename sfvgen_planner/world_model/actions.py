"""Actions in an environment's units, and in [-1, 1] as the denoiser is told of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sfvgen_planner.bounds import tolerance
from sfvgen_planner.errors import SfvgenError


def action_bounds(
    low: Sequence[float] | np.ndarray | None, high: Sequence[float] | np.ndarray | None
) -> tuple[list[float], list[float]]:
    """Lower and upper bound of each action number as lists; both empty without actions.

    Raises:
        SfvgenError: They differ in length, or are not finite with low below high.
    """
    lows, highs = ([] if bound is None else [float(x) for x in bound] for bound in (low, high))
    if len(lows) != len(highs):
        raise SfvgenError(
            f"action_low has {len(lows)} numbers and action_high {len(highs)}; give one of each "
            "per action number"
        )
    if not all(-float("inf") < a < b < float("inf") for a, b in zip(lows, highs, strict=True)):
        raise SfvgenError(
            f"action_low must be finite and below action_high, got {lows} and {highs}"
        )
    return lows, highs


def normalise_actions(actions: Tensor, low: list[float], high: list[float]) -> Tensor:
    """Actions `(..., A)` in the environment's units to [-1, 1], float32 on their own device.

    Args:
        actions: Any kind of number.
        low: Lower bound of each action number, as `action_bounds` gives it.
        high: Upper bound of each action number.

    Raises:
        SfvgenError: An action has the wrong size, is not finite or leaves the bounds.
    """
    # Checked where they are: to look at numbers on a GPU is to wait for it.
    values = actions.to(torch.float32)
    if values.shape[-1:] != (len(low),):
        raise SfvgenError(
            f"the model takes actions of {len(low)} numbers, "
            f"got an array of shape {tuple(values.shape)}"
        )
    if not torch.isfinite(values).all():
        raise SfvgenError("actions must be finite numbers, got NaN or infinity")
    lows, highs = (torch.tensor(bound, device=values.device) for bound in (low, high))
    slack = tolerance(lows, highs)
    if (values < lows - slack).any() or (values > highs + slack).any():
        raise SfvgenError(
            f"actions must lie between {low} and {high}, got values from "
            f"{values.min().item():.3g} to {values.max().item():.3g}"
        )
    return 2 * (values - lows) / (highs - lows) - 1


def planned_frames(actions: Tensor, batch: int, num_frames: int | None) -> int:
    """Frames that `actions` lead into, one each.

    Args:
        actions: `(batch, num_frames, A)`, or anything else, which is refused.
        batch: Videos that are imagined.
        num_frames: The frames asked for; None or 0 for as many as there are actions.

    Raises:
        SfvgenError: The shape or the number of frames differs.
    """
    if actions.dim() != 3 or actions.shape[0] != batch:
        raise SfvgenError(
            f"actions must have the shape ({batch}, num_frames, {actions.shape[-1]}), "
            f"got {tuple(actions.shape)}"
        )
    num_frames = num_frames or actions.shape[1]
    if actions.shape[1] != num_frames:
        raise SfvgenError(f"{num_frames} frames need {num_frames} actions, got {actions.shape[1]}")
    return num_frames
