"""One env's action."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from sfvgen_planner.errors import require


def check_action(action: Any, space: gym.Space[Any]) -> None:
    """Refuse an action of another shape than the space's, or one that is not finite."""
    try:
        values = np.asarray(action, np.float32)
        is_good = values.shape == space.shape and bool(np.isfinite(values).all())
    except (ValueError, TypeError, RuntimeError):
        # Words, ragged lists, or a tensor that still has a gradient or is on a GPU.
        is_good = False
    require(is_good, f"an action must be {space.shape} finite numbers, got {action!r}")
