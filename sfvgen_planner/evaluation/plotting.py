"""What the pictures of all evaluations share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.evaluation.results import read_rows
from sfvgen_planner.files import replacing


def figure_rows(results: Path, name: str, evaluation: str) -> list[dict[str, Any]]:
    """The rows of one figure in a result file, at least one.

    Args:
        results: the result file.
        name: of the figure.
        evaluation: that measures it, as ``sfvgen eval`` calls it.

    Raises:
        SfvgenError: the file is no result file or has no such figure.
    """
    rows = [row for row in read_rows(results) if row["name"] == name]
    require(bool(rows), f"{results} has no {name}; measure it with `sfvgen eval {evaluation}`")
    return rows


def error_bars(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """How far the 95 % intervals of rows reach below and above their values."""
    below = [row["value"] - row["ci95"][0] for row in rows]
    above = [row["ci95"][1] - row["value"] for row in rows]
    return below, above


def check_picture(path: Path) -> None:
    """Refuse a picture that can't be drawn, before any work is spent.

    Raises:
        SfvgenError: matplotlib is missing, or draws no such files.
    """
    known = sorted(new_figure(1, 1).canvas.get_supported_filetypes())
    require(
        path.suffix.lower().removeprefix(".") in known,
        f"no picture can be written to {path}; end its name in one of .{', .'.join(known)}",
    )


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
    with replacing(out) as temporary:
        try:
            figure.savefig(temporary, dpi=150)
        except ValueError as error:
            raise SfvgenError(f"cannot write the plot {out} ({error})") from error
