"""The picture of the memory evaluation: error against horizon."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sfvgen_planner.evaluation.plotting import error_bars, figure_rows, new_figure, save_figure

FIGURE = "open_loop_error_px"


def plot_error_against_horizon(results: Path, out: Path) -> None:
    """Draw one panel per recall, one line per variant and model, with the 95 % intervals.

    Args:
        results: result file of ``sfvgen eval memory``.
        out: picture to write; its suffix says how (``.png``, ``.svg``, ``.pdf``).

    Raises:
        SfvgenError: the file has no such figure, matplotlib is missing, or ``out`` cannot be
            written.
    """
    rows = figure_rows(results, FIGURE, "memory")
    recalls = sorted({row["recall"] for row in rows})
    horizons = sorted({row["horizon"] for row in rows})
    kinds = list(dict.fromkeys(_kind(row) for row in rows))
    figure = new_figure(1 + 4 * len(recalls), 3.6)
    panels = figure.subplots(1, len(recalls), sharex=True, sharey=True, squeeze=False)[0]
    lines = {}
    for panel, recall in zip(panels, recalls, strict=True):
        for place, kind in enumerate(kinds):
            chosen = [row for row in rows if (row["recall"], _kind(row)) == (recall, kind)]
            if chosen:
                # Beside each other, so that no interval hides another.
                shift = 0.06 * (place - (len(kinds) - 1) / 2)
                lines[_label(kind, kinds)] = _draw_line(
                    panel,
                    chosen,
                    shift,
                    # There are 10 colours.
                    color=f"C{place}",
                    marker="osD"[place // 10 % 3],
                )
        panel.set_title(f"asked for the {recall} place")
        panel.set_xlabel("memory horizon [chunks]")
        panel.set_xticks(horizons)
    # Only now, when all panels, which share the axis, have said how high it must reach.
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("error of the imagined place [px of 64]")
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", frameon=False)
    save_figure(figure, out)


class _Kind(NamedTuple):
    """What the rows of one line share."""

    variant: str
    num_moves_before: int
    num_noise_draws: int | None
    model: str


def _kind(row: dict[str, Any]) -> _Kind:
    before, draws = row.get("num_moves_before", 0), row.get("num_noise_draws")
    return _Kind(row["variant"], before, draws, row["model"])


def _label(kind: _Kind, kinds: Sequence[_Kind]) -> str:
    """The variant, and what else tells it from the other lines."""
    words = [kind.variant.replace("_", " ")]
    if kind.num_moves_before:
        words.append(f"after other moves: {kind.num_moves_before}")
    alike = [o for o in kinds if o[:2] == kind[:2]]
    if len({other.num_noise_draws for other in alike}) > 1:
        draws = kind.num_noise_draws
        words.append("all noise draws" if draws is None else f"noise draws: {draws}")
    if len({other.model for other in alike}) > 1:
        words.append(kind.model)
    return ", ".join(words)


def _draw_line(panel: Any, rows: Sequence[dict[str, Any]], shift: float, **style: Any) -> Any:
    rows = sorted(rows, key=lambda row: row["horizon"])
    places = [row["horizon"] + shift for row in rows]
    values = [row["value"] for row in rows]
    bars = error_bars(rows)
    return panel.errorbar(places, values, bars, ms=4, capsize=2, **style)
