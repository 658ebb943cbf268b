"""The index of an episode store: one line of JSON per committed episode."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from sfvgen_planner.data.episode import BoolArray, Episode, EpisodeSource
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.files import lock

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


@dataclass(frozen=True)
class IndexEntry:
    """All of an episode that is not an array.

    Attributes:
        row: The store row of its first frame.
        num_steps: T.
        instructions: (text, number of steps) pairs, in order.
        successes: (success, number of steps) pairs, in order; None where the environment did not
            tell, as in stores from before it was recorded.
        seed: Seed of the episode.
        terminated: See `Episode`.
        truncated: See `Episode`.
        frames_crc32: Checksum of the frames' bytes.
        info: See `Episode`.
        source: See `Episode`.
    """

    row: int
    num_steps: int
    instructions: tuple[tuple[str, int], ...]
    seed: int
    terminated: bool
    truncated: bool
    frames_crc32: int
    info: dict[str, Any]
    source: EpisodeSource
    successes: tuple[tuple[bool, int], ...] | None = None

    @classmethod
    def of(cls, episode: Episode, row: int, frames_crc32: int) -> Self:
        """Describe an episode that is stored from `row` on."""
        return cls(
            row=row,
            num_steps=len(episode),
            instructions=_runs(episode.instructions),
            seed=episode.seed,
            terminated=episode.terminated,
            truncated=episode.truncated,
            frames_crc32=frames_crc32,
            info=episode.info,
            source=episode.source,
            successes=None if episode.successes is None else _runs(episode.successes.tolist()),
        )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Rebuild an entry from a parsed line.

        Raises:
            KeyError, TypeError, ValueError: A value is missing, or of another kind.
        """
        for name in ("row", "num_steps", "seed", "frames_crc32"):
            if not isinstance(values[name], int):
                raise TypeError(f"{name} is {values[name]!r}")
        instructions = tuple((str(text), int(steps)) for text, steps in values["instructions"])
        source = EpisodeSource(**values["source"])
        successes = values.get("successes")
        if successes is not None:
            successes = tuple((bool(success), int(steps)) for success, steps in successes)
        for name, runs in (("instructions", instructions), ("successes", successes)):
            if runs is not None and sum(steps for _, steps in runs) != values["num_steps"]:
                raise ValueError(f"{name} are not one for each of {values['num_steps']} steps")
        made = {"instructions": instructions, "source": source, "successes": successes}
        return cls(**{**values, **made})

    def instruction_list(self) -> list[str]:
        """Return the T instructions, one per step."""
        return [text for text, steps in self.instructions for _ in range(steps)]

    def success_array(self) -> BoolArray | None:
        """Return the successes `(T,)`, one per step, where there are any."""
        if self.successes is None:
            return None
        values, lengths = zip(*self.successes, strict=True)
        return np.repeat(np.array(values, np.bool_), lengths)


def _runs(values: Sequence[Value]) -> tuple[tuple[Value, int], ...]:
    """Each stretch of equal values as (value, length)."""
    return tuple((value, len(list(run))) for value, run in groupby(values))


def read_index(path: Path) -> tuple[list[IndexEntry], int]:
    """Read the committed episodes and the number of bytes that they take in the file.

    A last line that a crash tore is left out; any other damaged line is an error.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not _is_whole(lines[-1]):
        logger.warning("%s: dropped a torn last line", path)
        lines.pop()
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(IndexEntry.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise SfvgenError(
                f"line {number} of {path} is damaged ({error}); restore the file from a copy, or "
                "collect again into another folder"
            ) from error
    return entries, sum(map(len, lines))


def _is_whole(line: bytes) -> bool:
    """Whether a line was written to its end, whatever it says."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n")


class IndexWriter:
    """Appends to an index; only one process at a time holds it.

    Attributes:
        entries: The episodes that were committed before.
    """

    def __init__(self, path: Path) -> None:
        """Lock the file and cut off what a crash left behind the last committed episode.

        Raises:
            SfvgenError: Another process holds the lock, or the index is damaged.
        """
        self._file = path.open("r+b", buffering=0)
        try:
            lock(
                self._file,
                f"another process is writing to {path.parent}; wait for it, or give another folder",
            )
            self.entries, self._end = read_index(path)
            self._cut()
        except BaseException:
            self._file.close()
            raise

    def append(self, entries: Sequence[IndexEntry]) -> None:
        """Commit entries: when this returns, they are on disk; when it fails, none is."""
        lines = b"".join(json.dumps(asdict(entry)).encode() + b"\n" for entry in entries)
        # An interruption may have come between writing lines and noting it.
        self._cut()
        try:
            remaining = memoryview(lines)
            while remaining:
                remaining = remaining[self._file.write(remaining) :]
            os.fsync(self._file.fileno())
        except BaseException:
            # A full disk or Ctrl-C may have left half a line.
            self._cut()
            raise
        self._end += len(lines)

    def close(self) -> None:
        """Give the lock back."""
        self._file.close()

    def _cut(self) -> None:
        self._file.truncate(self._end)
        self._file.seek(self._end)
