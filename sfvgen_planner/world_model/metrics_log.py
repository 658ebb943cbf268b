"""The record of a training run's metrics: JSON lines, and TensorBoard events beside them."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sfvgen_planner.files import write_text

logger = logging.getLogger(__name__)

Metrics = Mapping[str, float | NDArray[np.uint8]]
"""Numbers, and images `(height, width, 3)`, by name."""


class MetricsLog:
    """Writes `metrics.jsonl`, one object per line, each with its `step`, in rising order.

    Where tensorboard is installed, the same numbers go to TensorBoard events in the same folder,
    and images too, which JSON has no place for.
    Whatever was written is on the disk when `write` returns.
    """

    def __init__(self, folder: Path, step: int, enabled: bool = True) -> None:
        """Begin a log, or go on with the one in `folder`.

        Args:
            folder: Folder of the training stage.
            step: The step that training goes on from; whatever an interrupted run wrote of later
                steps is dropped, as is a line that it left half-written.
            enabled: False on all processes but the main one: nothing is touched.
        """
        self._path = folder / "metrics.jsonl"
        self._enabled = enabled
        self._events: Any = None
        if not enabled:
            return
        if self._path.exists():
            write_text(
                self._path, "".join(_lines_until(step, self._path.read_text(errors="replace")))
            )
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("tensorboard is not installed: the metrics go to %s alone", self._path)
        else:
            self._events = SummaryWriter(folder, purge_step=step + 1)

    def write(self, step: int, values: Metrics) -> None:
        """Write the metrics of one step."""
        if not self._enabled:
            return
        images = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        scalars = {name: value for name, value in values.items() if name not in images}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        if self._events is not None:
            for name, value in scalars.items():
                self._events.add_scalar(name, value, step)
            for name, image in images.items():
                self._events.add_image(name, image, step, dataformats="HWC")
            self._events.flush()

    def __enter__(self) -> Self:
        """Return the log itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the events."""
        if self._events is not None:
            self._events.close()


def _lines_until(step: int, text: str) -> list[str]:
    """The whole lines of `text` up to `step`."""
    kept = []
    for line in text.splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (json.JSONDecodeError, LookupError, TypeError):
            break
        kept.append(line + "\n")
    return kept
