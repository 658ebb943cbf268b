"""Checkpoints on the Hugging Face Hub."""

import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub

from sfvgen_planner.errors import SfvgenError, require

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
"""Arguments of `from_pretrained` that say how something is downloaded, as diffusers names them."""
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(.+))?")
# No pickles, which run whatever code they hold, and no scripts.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.md"]


def local_folder(
    name_or_path: str | PathLike[str], subfolders: Iterable[str] = ("",), **options: Any
) -> Path:
    """A folder as it is, or the local copy of what a Hub id names.

    Args:
        name_or_path: A folder, or a Hub id `user/name`, or `user/name@revision` with a branch, tag
            or commit. A folder goes before a Hub id of the same name, and a `Path` is no Hub id.
        subfolders: All that is downloaded; by default the whole repository.
        **options: Of `huggingface_hub.snapshot_download`, see `HUB_OPTIONS`; a folder needs none.

    Returns:
        The folder, which may be missing where `name_or_path` has not the form of a Hub id; or the
        download in the Hub's own cache, which goes without the network once it is complete, and is
        missing where the repository has none of the `subfolders`.

    Raises:
        SfvgenError: There is neither a folder nor a Hub repository or revision of that name; the
            Hub can't be reached; or two revisions are given.
    """
    folder = Path(name_or_path)
    match = _HUB_ID.fullmatch(name_or_path) if isinstance(name_or_path, str) else None
    if folder.is_dir() or match is None:
        return folder
    repository, revision = match.groups()
    if revision is not None:
        given = options.setdefault("revision", revision)
        require(given == revision, f"{name_or_path} has the revision {given} too: give one of them")
    patterns = [str(PurePosixPath(within, files)) for within in subfolders for files in _FILES]
    try:
        return Path(
            huggingface_hub.snapshot_download(repository, allow_patterns=patterns, **options)
        )
    except Exception as error:  # those of network, cache and Hub have nothing in common
        reason = next(iter(str(error).splitlines()), "")
        raise SfvgenError(
            f"there is no folder {name_or_path}, and the Hugging Face Hub gives no model of that "
            f"name ({type(error).__name__}: {reason}); check the name and the network, and log in "
            "for a private model (hf auth login)"
        ) from error
