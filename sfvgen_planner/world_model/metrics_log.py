"""The record of a training run's metrics."""

import json
from pathlib import Path

from sfvgen_planner.files import write_text


class MetricsLog:
    """Writes `metrics.jsonl`: one object per line, each with its `step`, in rising order."""

    def __init__(self, folder: Path, step: int) -> None:
        """Begin a log, or go on with the one in `folder`.

        Args:
            folder: Folder of the training stage.
            step: The step that training goes on from; whatever an interrupted run wrote of later
                steps is dropped, as is a line that it left half-written.
        """
        self._path = folder / "metrics.jsonl"
        if self._path.exists():
            write_text(self._path, "".join(_lines_until(step, self._path.read_text())))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the metrics of one step."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def _lines_until(step: int, text: str) -> list[str]:
    """The whole lines of `text` up to `step`."""
    kept = []
    for line in text.splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except json.JSONDecodeError:
            break
        kept.append(line + "\n")
    return kept
