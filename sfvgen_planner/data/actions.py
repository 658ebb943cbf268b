"""Actions as they come from outside."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from sfvgen_planner.errors import SfvgenError, require


def action_array(values: Any, wanted: str) -> np.ndarray:
    """As float32; where they are no numbers, the refusal begins with `wanted`."""
    try:
        return np.asarray(values, np.float32)
    except (ValueError, TypeError, RuntimeError) as error:
        # Words, ragged lists, or a tensor that still has a gradient or is on a GPU.
        raise SfvgenError(f"{wanted}, got {values!r}") from error


def check_action(action: Any, space: gym.Space[Any]) -> None:
    """Refuse an action of another shape than the space's, or one that is not finite."""
    wanted = f"an action must be {space.shape} finite numbers"
    values = action_array(action, wanted)
    is_good = values.shape == space.shape and bool(np.isfinite(values).all())
    require(is_good, f"{wanted}, got {action!r}")
