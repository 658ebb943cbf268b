"""Checkpoint folders: a manifest of checksums, and one clear sentence for a broken one."""

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import transformers
from safetensors import SafetensorError

from sfvgen_planner.errors import SfvgenError

MANIFEST = "manifest.json"
INVERSE_DYNAMICS_FOLDER = "inverse_dynamics"
OUTCOME_HEAD_FOLDER = "outcome_head"
TEMPORAL_DISTANCE_FOLDER = "temporal_distance"
FINAL_FOLDER = "model"
"""Folder of a training run with its finished checkpoint."""
MEMORY_FOLDER = "memory"
"""Folder of a checkpoint with the adapters that the slow-fast loop has trained."""
COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
_PARTS = (
    *COMPONENTS,
    INVERSE_DYNAMICS_FOLDER,
    OUTCOME_HEAD_FOLDER,
    TEMPORAL_DISTANCE_FOLDER,
    MEMORY_FOLDER,
)
_WEIGHTED = ("vae", "text_encoder", "unet")
_PICKLED_SUFFIXES = {".bin", ".ckpt", ".pt", ".pth"}
_CHECKED_SUFFIXES = {".json", ".safetensors", ".txt"}


def _write_manifest(folder: Path) -> None:
    """Record size and SHA-256 of every weight, config and tokenizer file of a checkpoint."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha(path)}
        for path in _own_files(folder)
        if path.suffix in _CHECKED_SUFFIXES
    }
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps({"files": files}, indent=2) + "\n")
    temporary.replace(folder / MANIFEST)


def finish_folder(folder: Path) -> None:
    """Put right what the libraries have just written, and record it in a manifest.

    Configs tell nothing of where their models were loaded from, and lists of shards that another
    file has replaced go.
    """
    for index, shards in _shard_lists(folder):
        if not all(shard.is_file() for shard in shards):
            index.unlink()
    for path in _own_files(folder):
        content = json.loads(path.read_text()) if path.suffix == ".json" else None
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    _write_manifest(folder)


def _own_files(folder: Path) -> list[Path]:
    """The files of a checkpoint; what else lies in its folder is somebody else's."""
    below = [path for part in _PARTS for path in (folder / part).rglob("*")]
    return sorted(path for path in (folder / "model_index.json", *below) if path.is_file())


def _shard_lists(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """A checkpoint's lists of shards, and the files that each names."""
    for index in _own_files(folder):
        if index.name.endswith(".safetensors.index.json"):
            weight_map = _read_json(index, folder).get("weight_map")
            if not isinstance(weight_map, dict):
                raise SfvgenError(f"{index} is no list of shards; copy it again")
            yield index, [index.parent / name for name in sorted(set(weight_map.values()))]


def check_folder(folder: Path, given: Collection[str] = (), variant: str | None = None) -> None:
    """Refuse a folder that is no whole checkpoint, before anything is loaded.

    Args:
        folder: Holds `model_index.json` and a folder for each component.
        given: Components that come from elsewhere and so need no files.
        variant: The variant of the weights that is to be loaded, such as "fp16".

    Raises:
        SfvgenError: The folder or a file is missing, cut short, or not the one that was saved, or
            weights are there only as a pickle or as another variant.
    """
    if not folder.is_dir():
        raise SfvgenError(
            f"no checkpoint folder at {folder}; give the folder that holds model_index.json"
        )
    index = _read_json(folder / "model_index.json", folder)
    needed = [component for component in COMPONENTS if component not in given]
    for component in needed:
        if component not in index:
            raise SfvgenError(
                f"{folder / 'model_index.json'} names no {component}: this is a "
                f"{index.get('_class_name', 'foreign')} checkpoint, not a video world model"
            )
        if not (folder / component).is_dir():
            raise SfvgenError(f"the checkpoint {folder} lacks the folder {component}; restore it")
    if (folder / MANIFEST).is_file():
        _check_manifest(folder)
    for component in needed:
        if component in _WEIGHTED:
            check_weights(folder / component, variant)
    for _, shards in _shard_lists(folder):
        for shard in shards:
            if not shard.is_file():
                raise SfvgenError(
                    f"the checkpoint {folder} lacks the file {shard.relative_to(folder)}; "
                    "restore it"
                )


def is_world_model(folder: Path) -> bool:
    """Whether a folder holds a world model, not a text-to-video model such as the base model.

    Raises:
        SfvgenError: It is no checkpoint folder.
    """
    return "num_past_frames" in _read_json(folder / "model_index.json", folder)


def trained_on(folder: Path) -> str | None:
    """Id of the environment that a world model's data came from; None where it does not tell.

    Raises:
        SfvgenError: It is no checkpoint folder.
    """
    return _read_json(folder / "model_index.json", folder).get("env_id") or None


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars of the libraries for files that are read or written in a second."""
    loggers = (diffusers.utils.logging, transformers.utils.logging)
    for logger in loggers:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger in loggers:
            logger.enable_progress_bar()


@contextmanager
def loading_errors(folder: Path | str, advice: str = "save or copy it again") -> Iterator[None]:
    """Turn what the libraries raise on a broken checkpoint into one `SfvgenError`."""
    try:
        yield
    except SfvgenError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
        ArithmeticError,
        SafetensorError,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SfvgenError(
            f"the checkpoint {folder} can't be loaded ({reason}); {advice}"
        ) from error


def check_weights(folder: Path, variant: str | None = None) -> None:
    """Only safetensors are loaded: unpickling runs whatever code the file holds.

    Raises:
        SfvgenError: The folder has none, or only those of another variant.
    """
    files = [path for path in folder.iterdir() if path.is_file()]
    names = sorted(path.stem for path in files if path.suffix == ".safetensors")
    if not names:
        pickled = sorted(path.name for path in files if path.suffix in _PICKLED_SUFFIXES)
        reason = f", only {pickled[0]}, which is a pickle" if pickled else ""
        raise SfvgenError(
            f"{folder} holds no safetensors weights{reason}; download or save the model with "
            "safetensors (save_pretrained of diffusers writes them)"
        )
    # A variant's files are called "model.fp16.safetensors".
    variants = {name.partition(".")[2].partition("-")[0] for name in names}
    if variant is None and "" not in variants:
        found = sorted(variants)[0]
        raise SfvgenError(f'{folder} holds only {found} weights; load it with variant="{found}"')


def _check_manifest(folder: Path) -> None:
    try:
        files = _read_json(folder / MANIFEST, folder)["files"]
        recorded = {name: (file["bytes"], file["sha256"]) for name, file in files.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise SfvgenError(f"{folder / MANIFEST} is no list of checksums; copy it again") from error
    for name, (num_bytes, sha) in recorded.items():
        path = folder / name
        if not path.is_file():
            raise SfvgenError(f"the checkpoint {folder} lacks the file {name}; restore it")
        size = path.stat().st_size
        if size < num_bytes:
            raise SfvgenError(f"{path} is cut short ({size} of {num_bytes} bytes); copy it again")
        if _sha(path) != sha:
            raise SfvgenError(
                f"{path} is not the file this checkpoint was saved with; copy it again, or save "
                "the changed model with save_pretrained"
            )


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SfvgenError(f"the checkpoint {folder} lacks the file {path.relative_to(folder)}")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SfvgenError(f"{path} is not valid JSON; copy it again") from error
    if not isinstance(content, dict):
        raise SfvgenError(f"{path} holds no JSON object; copy it again")
    return content


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
