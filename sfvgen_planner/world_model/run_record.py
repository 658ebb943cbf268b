"""What a training run was begun with, so that only the same run goes on in its folder."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.files import write_json
from sfvgen_planner.world_model.checkpoint import MANIFEST

RUN_FILE = "run.json"
_MAY_DIFFER = re.compile(
    # Not trained on; the store itself is compared.
    r"name|data\..*"
    # How long, how fast and how closely watched.
    r"|(.*\.)?(compile|eval_every|gradient_checkpointing)"
    r"|.*optimisation\.(steps|checkpoint_every|capture"
    # Lowered where a run diverges.
    r"|learning_rate)"
)
_CHECKSUMS = {
    "data": "the episodes of --data are others",
    "init_from": "the model of --init-from is another",
}
_MAX_TOLD = 3
_NO_RUNS = {"model_index.json": "a model", "zarr.json": "an episode store"}


def run_record(recipe: BaseModel, store: EpisodeStore, init_from: Path | None) -> dict[str, Any]:
    """What tells a run from others: its recipe and checksums of its data and of where it began.

    Args:
        recipe: Its steps, its speed and its learning rates may change on the way.
        store: The episodes.
        init_from: The checkpoint folder that the run goes on from, if from any.
    """
    # Defaults are left out: a new key of a later release makes no other recipe.
    settings = recipe.model_dump(mode="json", exclude_defaults=True)
    episodes = [store.spec.to_json(), *map(asdict, store.entries)]
    return {
        "recipe": {
            key: value for key, value in _leaves(settings) if not _MAY_DIFFER.fullmatch(key)
        },
        "data": hashlib.sha256(json.dumps(episodes, sort_keys=True).encode()).hexdigest(),
        "init_from": None if init_from is None else _identity(init_from),
    }


def check_run(out: Path, record: dict[str, Any]) -> None:
    """Refuse to go on with what another run has left; folders without a record pass.

    Args:
        out: The run's folder; stages have their checkpoints in folders below it.
        record: What `run_record` gives for this run.

    Raises:
        SfvgenError: The folder is a model or a store, holds checkpoints of another run, or its
            record can't be read.
    """
    for name, kind in _NO_RUNS.items():
        if (out / name).exists():
            raise SfvgenError(f"{out} is {kind}; give --out a folder of its own")
    file = out / RUN_FILE
    if not file.is_file() or not any(out.glob("*/checkpoint-*")):
        return
    try:
        earlier = json.loads(file.read_text())
        was, now = earlier["recipe"], record["recipe"]
        differences = [
            f"{key} was {was.get(key, 'unset')} and is now {now.get(key, 'unset')}"
            for key in sorted({*was, *now})
            if was.get(key) != now.get(key)
        ]
        differences += [
            words for name, words in _CHECKSUMS.items() if earlier[name] != record[name]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SfvgenError(
            f"{file} can't be read ({type(error).__name__}); delete it to go on with what the "
            "folder holds, or train into another --out folder"
        ) from error
    if differences:
        raise SfvgenError(
            f"{out} holds another run: {', '.join(differences[:_MAX_TOLD])}; begin with what it "
            "was begun with, or train into another --out folder"
        )


def write_run(out: Path, record: dict[str, Any]) -> None:
    """Write the record into the run's folder.

    Raises:
        SfvgenError: It can't be written.
    """
    write_json(out / RUN_FILE, record)


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of nested sections by names such as `stages.0.max_chunks`."""
    if isinstance(value, dict):
        inner = value
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        inner = dict(enumerate(value))
    else:
        yield place, value
        return
    for key, part in inner.items():
        yield from _leaves(part, f"{place}.{key}" if place else str(key))


def _identity(checkpoint: Path) -> str:
    """A checksum of a checkpoint's list of checksums, or of its index where it has none."""
    manifest = checkpoint / MANIFEST
    file = manifest if manifest.is_file() else checkpoint / "model_index.json"
    return hashlib.sha256(file.read_bytes()).hexdigest()
