"""Figures made again by the commands that their rows name, and compared with what they were."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.evaluation.results import merge_rows, read_rows, row_key
from sfvgen_planner.files import prepare_folder, writing_errors

Row = dict[str, Any]
_POLL_SECONDS = 0.2
_STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Comparison:
    """A row of a result file and the one that its command made now.

    Attributes:
        kept: the row in the result file.
        again: of the same name and fields; None where the command made none.
    """

    kept: Row
    again: Row | None

    @property
    def agrees(self) -> bool:
        """Whether the two 95 % intervals overlap."""
        if self.again is None:
            return False
        (low, high), (again_low, again_high) = self.kept["ci95"], self.again["ci95"]
        return bool(low <= again_high and again_low <= high)


def select_rows(
    files: Sequence[Path], figures: Sequence[str] = (), fields: dict[str, Any] | None = None
) -> dict[Path, list[Row]]:
    """The rows of these result files with one of these names and with these values.

    Args:
        files: result files.
        figures: names of figures; empty for all.
        fields: values that a row must have, such as ``{"horizon": 4}``.

    Raises:
        SfvgenError: a file is missing or is no result file, no row is left, or one that is can't be
            made again.
    """
    wanted = fields or {}
    selected = {}
    for file in files:
        require(file.is_file(), f"there is no result file {file}")
        selected[file] = [
            row
            for row in read_rows(file)
            if (not figures or row["name"] in figures)
            and all(name in row and row[name] == value for name, value in wanted.items())
        ]
        for row in selected[file]:
            _check_row(row, file)
    require(any(selected.values()), "no row of these result files is asked for; ask for more")
    return selected


def run_commands(commands: Iterable[str], out: Path, num_jobs: int = 1) -> list[str]:
    """Run each of the commands once, several at a time, each with a result file of its own.

    A command that has ended well is not run again, so the same call goes on where an earlier one
    was stopped. Where there are several GPUs, each command sees the one that is used least.

    Args:
        commands: of result rows.
        out: folder for the result files and logs.
        num_jobs: commands that run at a time.

    Returns:
        One line on each command that failed.

    Raises:
        SfvgenError: a command is none of ours, or ``out`` can't be written.
        KeyboardInterrupt: interrupted; the commands that ran are stopped.
    """
    require(num_jobs > 0, f"--jobs must be positive, got {num_jobs}")
    jobs = [_Job(command, out) for command in dict.fromkeys(commands)]
    prepare_folder(out)
    waiting = [job for job in jobs if not job.results.exists()]
    running: list[_Job] = []
    failures = []
    done = len(jobs) - len(waiting)
    bar = tqdm(total=len(jobs), initial=done, desc="commands", unit="command")
    with bar as progress, _interrupted_by_sigterm():
        try:
            while waiting or running:
                while waiting and len(running) < num_jobs:
                    job = waiting.pop(0)
                    job.start(_least_used_gpu(running))
                    running.append(job)
                for job in [job for job in running if job.ended]:
                    running.remove(job)
                    failures += job.finish()
                    progress.update()
                time.sleep(_POLL_SECONDS)
        finally:
            for job in running:
                job.stop()
    return failures


class _Job:
    """A command in a process of its own.

    Attributes:
        results: file that it leaves once it has ended well.
        gpu: number of the GPU that it sees.
    """

    gpu = 0

    def __init__(self, command: str, out: Path) -> None:
        self.results = _results(command, out)
        self._command = command
        self._arguments = _arguments(command)
        self._unfinished = self.results.with_suffix(".unfinished")
        self._log = self.results.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, gpu: int) -> None:
        self.gpu = gpu
        with writing_errors(self._log):
            # Its rows may be of older code.
            self._unfinished.unlink(missing_ok=True)
            output = self._log.open("wb")
        with output:
            self._process = subprocess.Popen(
                [*self._arguments, "--out", str(self._unfinished)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | _visible_gpu(gpu),
                # Ctrl-C in a terminal reaches a whole group; here commands are stopped one by one.
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    def finish(self) -> list[str]:
        """Keep what the command made; what is to be said where it failed."""
        assert self._process is not None
        if self._process.returncode == 0 and self._unfinished.exists():
            self._unfinished.rename(self.results)
            return []
        last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
        return [f"{self._command} failed ({self._log}): {''.join(last)}"]

    def stop(self) -> None:
        """As Ctrl-C does, for the command and its workers."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def compare(rows: Iterable[Row], out: Path) -> list[Comparison]:
    """Each row beside the one that `run_commands` made in ``out``."""
    made: dict[str, dict[str, Row]] = {}
    comparisons = []
    for row in rows:
        command = row["command"]
        if command not in made:
            made[command] = {row_key(each): each for each in read_rows(_results(command, out))}
        comparisons.append(Comparison(row, made[command].get(row_key(row))))
    return comparisons


def take_over(file: Path, comparisons: Iterable[Comparison]) -> int:
    """Put the new rows in a result file in place of the old ones, and say how many.

    They keep the command as it was asked for, without the file that it wrote here.
    """
    rows = [{**c.again, "command": c.kept["command"]} for c in comparisons if c.again is not None]
    merge_rows(file, rows)
    return len(rows)


def _check_row(row: Row, file: Path) -> None:
    values = row.get("ci95")
    numbers = [row.get("value"), *(values if isinstance(values, list) else [])]
    told = f"a row {row['name']} of {file}"
    advice = "leave it out with --only or --where"
    require(
        len(numbers) == 3 and all(isinstance(n, int | float) and math.isfinite(n) for n in numbers),
        f"{told} has no number as its value or no two as its interval (ci95); {advice}",
    )
    require(isinstance(row.get("command"), str), f"{told} has no command; {advice}")
    try:
        json.dumps(row, allow_nan=False)
        _arguments(row["command"])
    except ValueError as error:
        raise SfvgenError(f"{told} can't be made again: {error}; {advice}") from error


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """What ends this process ends the commands too, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _results(command: str, out: Path) -> Path:
    return out / f"{hashlib.sha256(command.encode()).hexdigest()[:12]}.json"


def _arguments(command: str) -> list[str]:
    """What to run for a row's command, without the files that it wrote.

    Raises:
        SfvgenError: it is no evaluation or benchmark of this project.
    """
    words, given = [], iter(shlex.split(command))
    for word in given:
        name, _, value = word.partition("=")
        if len(name) > 3 and any(option.startswith(name) for option in ("--out", "--plot")):
            if not value:
                next(given, None)
        elif word != "--verbose":
            words.append(word)
    if words[:2] == ["sfvgen", "eval"]:
        return [sys.executable, "-m", "sfvgen_planner", *words[1:]]
    if words[:1] == ["python"] and Path(*words[1:2]).parent == Path("benchmarks"):
        require(
            Path(words[1]).is_file(),
            f"there is no {words[1]} here; run this from the root of a checkout",
        )
        return [sys.executable, *words[1:]]
    raise SfvgenError(
        f"it was made by {command!r}, but only `sfvgen eval ...` and `python benchmarks/...` are "
        "run again"
    )


def _least_used_gpu(running: Sequence[_Job]) -> int:
    used = [job.gpu for job in running]
    return min(range(max(1, torch.cuda.device_count())), key=used.count)


def _visible_gpu(index: int) -> dict[str, str]:
    """Environment in which a process sees one of the GPUs, where there are several."""
    if torch.cuda.device_count() < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[index] if visible else str(index)}
