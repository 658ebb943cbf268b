"""Output files: refused before any work, and never half-written."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from sfvgen_planner.errors import SfvgenError


def prepare_folder(folder: Path) -> Path:
    """Create ``folder`` where it is missing and make sure that files can be written to it.

    Raises:
        SfvgenError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SfvgenError(
            f"cannot write to the output folder {folder} ({error.strerror}); choose another"
        ) from error
    return folder


def lock(file: IO[Any], message: str) -> None:
    """Hold an open file for this process alone, until it is closed.

    Raises:
        SfvgenError: with ``message``, where another process holds it; it is closed then.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise SfvgenError(message) from error


@contextmanager
def writing_errors(path: Path, kept: bool = True) -> Iterator[None]:
    """Turn what is raised where ``path`` cannot be written, as on a full disk, into one sentence.

    Args:
        path: what is written.
        kept: what was there before is whole still, because it is appended to, or the new one is
            written under another name first.
    """
    try:
        yield
    except Exception as error:
        # The tokenizers library raises a bare Exception, with Rust's words for what happened.
        if not isinstance(error, (OSError, SafetensorError)) and "(os error " not in str(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise SfvgenError(
            f"cannot write {path} ({reason}); make room or choose another folder"
            + (", what was there before is kept" if kept else " and write it again")
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, which takes its place once it is written in full.

    Raises:
        SfvgenError: it cannot be written; what was there before is kept.
    """
    with writing_errors(path):
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one go.

    Raises:
        SfvgenError: it cannot be written; what was there before is kept.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one go; numbers that are not finite are refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
