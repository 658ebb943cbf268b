"""One env's action."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from sfvgen_planner.errors import require


def check_action(action: Any, space: gym.Space[Any]) -> None:
    """Refuse an action of another shape than the space's, or one that is not finite."""
    values = np.asarray(action, np.float32)
    require(
        values.shape == space.shape and bool(np.isfinite(values).all()),
        f"an action must be {space.shape} finite numbers, got {action!r}",
    )
