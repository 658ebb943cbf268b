"""How closely numbers keep their bounds."""

from __future__ import annotations

from typing import Any


def tolerance(low: Any, high: Any) -> Any:
    """How far actions may leave their bounds by rounding.

    Args:
        low: Lower bounds, an array or a tensor.
        high: Upper bounds, likewise.

    Returns:
        One number for each bound, of the same kind: a share of the range, and what single
        precision can't tell apart at all.
    """
    return 5e-5 * (high - low) + 1e-7 * (abs(low) + abs(high))
