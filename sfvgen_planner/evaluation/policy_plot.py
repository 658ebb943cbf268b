"""The picture of the policy evaluation: success in imagination against the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfvgen_planner.errors import require
from sfvgen_planner.evaluation.plotting import (
    colour_map,
    error_bars,
    figure_rows,
    new_figure,
    save_figure,
)

FIGURE = "policy_success_rate"
_MARKERS = {"replay": "o", "closed_loop": "s"}


def plot_success_rates(results: Path, out: Path) -> None:
    """Draw one panel per model and criterion, one point per policy, with the 95 % intervals.

    On the diagonal imagination is as successful as the simulator.

    Args:
        results: result file of ``sfvgen eval policy``.
        out: picture to write; its suffix says how (``.png``, ``.svg``, ``.pdf``).

    Raises:
        SfvgenError: the file has no such figure, matplotlib is missing, or ``out`` cannot be
            written.
    """
    rows = figure_rows(results, FIGURE, "policy")
    real = {(row["policy"], row.get("model")): row for row in rows if row["where"] == "simulator"}
    # What acts through a model has a row for each model in the simulator too.
    pairs = [
        (simulated, row)
        for row in rows
        if row["where"] == "imagination"
        and (simulated := real.get((row["policy"], row["model"]), real.get((row["policy"], None))))
    ]
    require(
        bool(pairs),
        f"{results} has {FIGURE} of no policy in both the simulator and imagination; "
        "let `sfvgen eval policy` measure it to its end",
    )
    panels = sorted({(imagined["model"], imagined["criterion"]) for _, imagined in pairs})
    figure = new_figure(3 + 3.6 * len(panels), 3.8)
    palette = colour_map("tab20")
    policies = dict.fromkeys(policy for policy, _ in real)
    colours = {policy: palette(place % 20) for place, policy in enumerate(policies)}
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    lines: dict[str, Any] = {}
    for panel, (model, criterion) in zip(axes, panels, strict=True):
        panel.plot([0, 1], [0, 1], color="0.7", lw=1, zorder=0)
        for simulated, imagined in pairs:
            if (imagined["model"], imagined["criterion"]) == (model, criterion):
                policy, mode = imagined["policy"], imagined["mode"]
                label = policy + ("" if mode == "replay" else ", closed loop")
                style = {"color": colours[policy], "marker": _MARKERS[mode]}
                lines[label] = _draw_point(panel, simulated, imagined, **style)
        panel.set_title(f"{model}, {criterion.replace('_', ' ')}", fontsize="medium")
        panel.set_xlabel("success in the simulator")
        panel.set_aspect("equal")
    axes[0].set_ylabel("success in imagination")
    place = {"loc": "outside right upper", "frameon": False, "fontsize": "small"}
    figure.legend(lines.values(), lines.keys(), **place)
    save_figure(figure, out)


def _draw_point(panel: Any, real: dict[str, Any], imagined: dict[str, Any], **style: Any) -> Any:
    x, y = (error_bars([row]) for row in (real, imagined))
    return panel.errorbar(
        [real["value"]], [imagined["value"]], yerr=y, xerr=x, ls="", ms=5, lw=1, alpha=0.8, **style
    )
