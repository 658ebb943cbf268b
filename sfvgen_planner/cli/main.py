"""Entry point of the `sfvgen` command."""

import argparse
import ctypes
import importlib
import logging
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import Any, Protocol, cast

from sfvgen_planner import __version__
from sfvgen_planner.display import render_without_display
from sfvgen_planner.errors import SfvgenError

# One module of this package per subcommand. Each imports what it needs inside `run`, so that
# `sfvgen --help` answers at once.
COMMANDS = (
    "collect",
    "convert",
    "train",
    "loop",
    "carry_over",
    "online",
    "demo",
    "evaluate",
    "reproduce",
    "doctor",
)

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

# The numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


class Command(Protocol):
    """What a module of this package offers."""

    def add_parser(self, subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        """Add the subcommand's parser, with `run` among its defaults.

        `run(args) -> int` returns the exit code. A command that goes on where it was stopped
        also sets `resumes=True`.
        """


class _Parser(argparse.ArgumentParser):
    """Takes ``--verbose`` before a subcommand and after it alike: its subparsers are such, too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_argument(
            "--verbose",
            action="store_true",
            default=argparse.SUPPRESS,
            help="log what is being done",
        )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser: argparse.ArgumentParser = _Parser(
        prog="sfvgen", description="Plan robot actions in a video model that remembers."
    )
    parser.add_argument("--version", action="version", version=f"sfvgen-planner {__version__}")
    parser.set_defaults(resumes=False, verbose=False)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = cast(Command, importlib.import_module(f"sfvgen_planner.cli.{name}"))
        module.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `sfvgen` with `argv` (default: the process's own arguments).

    Returns:
        The exit code: what the subcommand returned, 2 for bad input and for files that cannot be
        read or written, 130 after Ctrl-C, 141 where nothing reads the output any more.
    """
    render_without_display()
    _keep_freed_memory()
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    try:
        code = cast(int, args.run(args))
        # Unlike sys.stdout.flush(), print() can do without an open output.
        print(end="", flush=True)
        return code
    except SfvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has seen enough.
        _end_output()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        # Any path may be too long or behind a closed door, and the output's disk may be full.
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{' '.join(str(error.strerror or error).split())}", file=sys.stderr)
        _end_output()
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        message = "interrupted"
        if args.resumes:
            message += f"; the same command goes on from here: {shlex.join(['sfvgen', *arguments])}"
        print(f"\n{message}", file=sys.stderr)
        return EXIT_INTERRUPTED


def _end_output() -> None:
    """Write what was printed, or else drop it: Python would try again as it ends, and complain."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _keep_freed_memory() -> None:
    """Let glibc keep large tensors that were freed for the next ones.

    It gives each back to the system, which then clears new pages for the next: a third of the time
    of a batch of imagined chunks on a CPU.
    """
    own_settings = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not own_settings:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
