"""The demo's report: one HTML file that opens from disk."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from sfvgen_planner.files import write_text

_ARM_NAMES = {"memory_on": "memory on", "memory_off": "memory off"}


def write_report(folder: Path, summary: dict[str, Any]) -> None:
    """Write ``report.html`` from the demo's summary and the videos beside it, all embedded.

    Args:
        folder: where the videos and the poster are, and where the report goes.
        summary: content of ``summary.json``.
    """
    environment = Environment(
        loader=PackageLoader("sfvgen_planner.evaluation"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    seeds = summary["memory_on"]["seeds"]
    html = environment.get_template("report.html").render(
        summary=summary,
        arm_names=_ARM_NAMES,
        finding=finding(summary),
        chart=_chart(summary),
        poster=_data_uri(folder / "poster.png", "image/png"),
        videos=[
            {
                "seed": seed,
                "arms": {
                    video["arm"]: _data_uri(folder / video["file"], "video/mp4")
                    for video in summary["videos"]
                    if video["seed"] == seed
                },
            }
            for seed in seeds
        ],
    )
    write_text(folder / "report.html", html)


def finding(summary: dict[str, Any]) -> str:
    """What the run says about the memory, in a few plain sentences."""
    on, off, paired = summary["memory_on"], summary["memory_off"], summary["paired_difference_m"]
    sentences = [
        f"With the memory on, the returned cube ended {100 * on['mean_distance_m']:.1f} cm from "
        f"the place asked for on average; with it off, {100 * off['mean_distance_m']:.1f} cm."
    ]
    if paired is None:
        sentences.append(
            "In no episode did the moves before the return succeed both times, so this run says "
            "nothing about the memory: a cube that was never moved is where it should return to."
        )
        return " ".join(sentences)
    low, high = (100 * bound for bound in paired["ci95"])
    if high < 0:
        verdict = "in this run the memory helped"
    elif low > 0:
        verdict = "in this run the memory made it worse"
    else:
        verdict = "this run shows no difference that the memory made"
    sentences.append(
        f"Over the {paired['episodes']} of {on['episodes']} paired episodes whose moves succeeded "
        f"both times, so that there was something to return, the difference is "
        f"{100 * paired['mean']:+.1f} cm (95 % interval {low:+.1f} to {high:+.1f}): {verdict}."
    )
    if paired["episodes"] < 30:
        sentences.append("So few episodes show how it works; they do not measure it.")
    return " ".join(sentences)


def _chart(summary: dict[str, Any]) -> dict[str, Any]:
    """Points of the distance plot, in the units of its viewBox (400 by 220)."""
    arms = ("memory_off", "memory_on")
    largest = max(0.02, *(d for arm in arms for d in summary[arm]["distance_m"]))
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if largest / s <= 5)
    top = step * (int(largest / step) + 1)

    def height(metres: float) -> float:
        return round(190 - 170 * metres / top, 2)

    columns = {"memory_off": 150, "memory_on": 300}
    return {
        "lines": [
            {"y1": height(off), "y2": height(on), "seed": seed}
            for off, on, seed in zip(
                *(summary[arm]["distance_m"] for arm in arms),
                summary["memory_on"]["seeds"],
                strict=True,
            )
        ],
        "means": [
            {
                "x": columns[arm],
                "y": height(summary[arm]["mean_distance_m"]),
                "low": height(summary[arm]["ci95"]["mean_distance_m"][0]),
                "high": height(summary[arm]["ci95"]["mean_distance_m"][1]),
                "name": _ARM_NAMES[arm],
            }
            for arm in arms
        ],
        "ticks": [
            {"y": height(i * step), "label": f"{100 * i * step:g}"}
            for i in range(round(top / step) + 1)
        ],
        "goal": height(0.02),
    }


def _data_uri(path: Path, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"
