"""Where a figure comes from: command, machine, commit."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parent.parent


def command_line() -> str:
    """The command of this process as a user would type it: the program's, or a script's own."""
    program = Path(sys.argv[0])
    is_script = program.suffix == ".py" and program.name != "__main__.py"
    return shlex.join(["python", *sys.argv] if is_script else ["sfvgen", *sys.argv[1:]])


def machine(device: torch.device | str = "cpu") -> str:
    """The GPU's model where ``device`` is one, else the CPU's model and number of cores."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores"


def git_commit() -> str | None:
    """The commit of the checkout this package is run from, ``None`` where it is installed.

    ``-dirty`` is added where a package in it differs from the commit.
    """
    if not _git(_PACKAGE, "ls-files", "--error-unmatch", "__init__.py"):
        return None
    commit = _git(_PACKAGE, "rev-parse", "HEAD")
    changed = _git(
        _PACKAGE,
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":/sfvgen_planner",
        ":/envs",
        ":/policies",
    )
    return f"{commit}-dirty" if changed else commit


def checked_out_commit(folder: Path) -> str | None:
    """The commit that is checked out in a folder, ``None`` where that is no checkout."""
    return _git(folder, "rev-parse", "HEAD")


def today() -> str:
    """The date in UTC, ISO 8601."""
    return datetime.now(UTC).date().isoformat()


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far [MiB]."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of git in a folder, ``None`` where it fails or is not installed."""
    git = shutil.which("git")
    if git is None:
        return None
    result = subprocess.run(
        [git, "-C", str(folder), *arguments], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() if result.returncode == 0 else None
