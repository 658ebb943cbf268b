"""Result files: figures that carry all that is needed to make them again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation.provenance import command_line, git_commit, machine, today
from sfvgen_planner.evaluation.statistics import Estimate
from sfvgen_planner.files import write_text


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured.
        value: the mean.
        unit: of ``value``; ``"1"`` for a share.
        ci95: 95 % bootstrap interval of the mean.
        episodes: independent samples that the mean is over.
        seeds: of the episodes.
        command: that made it.
        machine: that it was made on.
        git_commit: of the code, ``None`` where it was not run from a checkout.
        date: ISO 8601.
        fields: further settings that tell this row from others of the same name.
    """

    name: str
    value: float
    unit: str
    ci95: tuple[float, float]
    episodes: int
    seeds: list[int]
    command: str
    machine: str
    git_commit: str | None
    date: str
    fields: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def measured(
        cls,
        name: str,
        values: Sequence[float] | np.ndarray,
        unit: str,
        seeds: Iterable[int],
        device: Any = "cpu",
        **fields: Any,
    ) -> Figure:
        """A figure from one value per episode, measured now by this process."""
        return cls.of_estimate(name, Estimate.of(values), unit, seeds, device, **fields)

    @classmethod
    def of_estimate(
        cls,
        name: str,
        estimate: Estimate,
        unit: str,
        seeds: Iterable[int],
        device: Any = "cpu",
        **fields: Any,
    ) -> Figure:
        """A figure from an estimate over one episode per seed."""
        used = [int(seed) for seed in seeds]
        return cls(
            name=name,
            value=estimate.mean,
            unit=unit,
            ci95=estimate.ci95,
            episodes=len(used),
            seeds=used,
            command=command_line(),
            machine=machine(device),
            git_commit=git_commit(),
            date=today(),
            fields=fields,
        )

    def row(self) -> dict[str, Any]:
        """The figure as it stands in a result file."""
        row = asdict(self)
        return row | row.pop("fields")


_COMMON = {name for name in Figure.__dataclass_fields__ if name != "fields"}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a result file, none where there is no file yet.

    Raises:
        SfvgenError: the file is no result file.
    """
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["figures"]
        if any(not isinstance(row["name"], str) for row in rows):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SfvgenError(
            f'{path} is no result file ({{"figures": [...]}}); move it away or choose another name'
        ) from error
    return list(rows)


def merge_figures(path: Path, figures: Iterable[Figure]) -> None:
    """Add figures to a result file; a row of the same name and further fields is replaced."""
    merge_rows(path, [figure.row() for figure in figures])


def merge_rows(path: Path, new: Iterable[dict[str, Any]]) -> None:
    """`merge_figures`, of rows as they stand in a result file."""
    rows = {row_key(row): row for row in (*read_rows(path), *new)}
    # One row a line: a new measurement is a change of one line.
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows.values())
    write_text(path, f'{{"figures": [\n{lines}\n]}}\n')


def further_fields(row: dict[str, Any]) -> dict[str, Any]:
    """The settings that tell a row from others of the same name."""
    return {name: value for name, value in row.items() if name not in _COMMON}


def row_key(row: dict[str, Any]) -> str:
    """What tells a row from the others of its file: its name and further fields."""
    return json.dumps([row["name"], further_fields(row)], sort_keys=True)
