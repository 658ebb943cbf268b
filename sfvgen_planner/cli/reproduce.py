"""`sfvgen reproduce`: measure again what a result file says."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfvgen_planner.evaluation.reproduction import Comparison


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "reproduce",
        help="measure again what a result file says",
        description="Run the commands that rows of result files name, and compare what they give "
        "now with what the rows say. The same command goes on after an interruption; what DIR has "
        "is not measured again. Exit code 1 where a command failed or an interval does not overlap "
        "the old one.",
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="such as results/*.json"
    )
    parser.add_argument(
        "--only",
        action="extend",
        nargs="+",
        default=[],
        metavar="FIGURE",
        help="names of rows (default: all)",
    )
    parser.add_argument(
        "--where",
        action="extend",
        nargs="+",
        default=[],
        type=_field,
        metavar="FIELD=VALUE",
        help="rows that say so, such as variant=ours horizon=4",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="commands at a time, shared out to all GPUs (default: 1, as timings need)",
    )
    parser.add_argument(
        "--list", action="store_true", help="only show the commands that these rows come from"
    )
    parser.add_argument(
        "--replace", action="store_true", help="put the new rows in the place of the old ones"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/reproduced"),
        metavar="DIR",
        help="for the new rows and logs (default: runs/reproduced)",
    )
    parser.set_defaults(run=run, resumes=True)


def run(args: argparse.Namespace) -> int:
    """Run, compare and, where asked to, replace."""
    from sfvgen_planner.evaluation.reproduction import (
        compare,
        run_commands,
        select_rows,
        take_over,
    )

    selected = select_rows(args.files, args.only, dict(args.where))
    commands = [row["command"] for rows in selected.values() for row in rows]
    if args.list:
        print("\n".join(dict.fromkeys(commands)))
        return 0
    failures = run_commands(commands, args.out, args.jobs)
    agreeing = True
    for file, rows in selected.items():
        comparisons = compare(rows, args.out)
        for comparison in comparisons:
            print(_line(comparison))
        agreeing &= all(comparison.agrees for comparison in comparisons)
        if args.replace:
            print(f"{file}: {take_over(file, comparisons)} rows replaced")
    print("\n".join(failures), end="\n" if failures else "")
    return 0 if agreeing and not failures else 1


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _line(comparison: "Comparison") -> str:
    kept, again = comparison.kept, comparison.again
    verdict = "missing" if again is None else "agrees" if comparison.agrees else "APART"
    now = "" if again is None else f" now {_numbers(again)}"
    return f"{verdict:8}{kept['name']} {_numbers(kept)}{now}{_told(kept)}"


def _numbers(row: dict[str, Any]) -> str:
    low, high = row["ci95"]
    return f"{row['value']:.4g} [{low:.4g}, {high:.4g}]"


def _told(row: dict[str, Any]) -> str:
    from sfvgen_planner.evaluation.results import further_fields

    return "".join(f" {name}={value}" for name, value in further_fields(row).items())
