"""What the pictures of all evaluations share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.files import replacing


def require_matplotlib() -> None:
    """Refuse to go on without matplotlib, before any work is spent.

    Raises:
        SfvgenError: it is missing.
    """
    new_figure(1, 1)


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of a size in inches.

    Raises:
        SfvgenError: matplotlib is missing.
    """
    try:
        # Not pyplot, which looks for a display.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SfvgenError(
            "the plot needs matplotlib: pip install 'sfvgen-planner[report]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def colour_map(name: str) -> Any:
    """One of matplotlib's colour maps, where :func:`new_figure` has found it."""
    from matplotlib import colormaps

    return colormaps[name]


def save_figure(figure: Any, out: Path) -> None:
    """Write a figure; the suffix says how (``.png``, ``.svg``, ``.pdf``).

    Raises:
        SfvgenError: ``out`` cannot be written.
    """
    try:
        with replacing(out) as temporary:
            figure.savefig(temporary, dpi=150)
    except (OSError, ValueError) as error:
        raise SfvgenError(f"cannot write the plot {out} ({error})") from error
