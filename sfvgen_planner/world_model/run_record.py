"""What a training run was begun with, so that only the same run goes on in its folder."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.files import lock, prepare_folder, write_json, writing_errors
from sfvgen_planner.world_model.checkpoint import FINAL_FOLDER, MANIFEST
from sfvgen_planner.world_model.training_checkpoints import begun_stages

RUN_FILE = "run.json"
_LOCK_FILE = "training.lock"
_MAY_DIFFER = re.compile(
    # Not trained on; the store itself is compared.
    r"name|data\..*"
    # How long and how fast.
    r"|(.*\.)?(compile|gradient_checkpointing)"
    r"|.*optimisation\.(steps|checkpoint_every|capture"
    # Lowered where a run diverges.
    r"|learning_rate)"
)
_IS_WATCHED = re.compile(r"(.*\.)?eval_every")
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
    episodes = [store.spec.to_json(), *map(asdict, store.entries)]
    return {
        "recipe": recipe_settings(recipe),
        "steps": {
            key: value
            for key, value in _leaves(recipe.model_dump(mode="json"))
            if key.endswith("optimisation.steps")
        },
        "data": hashlib.sha256(json.dumps(episodes, sort_keys=True).encode()).hexdigest(),
        "init_from": None if init_from is None else _identity(init_from),
    }


def recipe_settings(recipe: BaseModel) -> dict[str, Any]:
    """The settings that make a run another one, by names such as `stages.0.max_chunks`."""
    # Defaults are left out: a new key of a later release makes no other recipe.
    settings = dict(_leaves(recipe.model_dump(mode="json", exclude_defaults=True)))
    for key in filter(_IS_WATCHED.fullmatch, settings):
        # However often: where there are held-out losses, some episodes are not trained on.
        settings[key] = bool(settings[key])
    return {key: value for key, value in settings.items() if not _MAY_DIFFER.fullmatch(key)}


@contextmanager
def running_alone(
    out: Path, record: dict[str, Any], init_from: Path | None, is_main_process: bool
) -> Iterator[None]:
    """Let no other run into the folder, nor go on with what one has left there.

    Checkpoints without a record pass.

    Args:
        out: The run's folder, made where it is missing; stages have their checkpoints in folders
            below it.
        record: What `run_record` gives for this run.
        init_from: The checkpoint folder that the run goes on from, if from any.
        is_main_process: Whether this is the process that locks the folder for all of the run's.

    Raises:
        SfvgenError: The folder is a model or a store, can't be written, is one that another run
            trains in, holds checkpoints or the model of another run or something else where the
            model is to go, or its record can't be read.
    """
    _check_folder(out, init_from)
    prepare_folder(out)
    with ExitStack() as held:
        if is_main_process:
            with writing_errors(out):
                file = held.enter_context((out / _LOCK_FILE).open("a"))
            lock(file, f"another run is training in {out}; wait for it, or stop it first")
        _check_record(out, record)
        yield


def _check_folder(out: Path, init_from: Path | None) -> None:
    for name, kind in _NO_RUNS.items():
        if (out / name).exists():
            raise SfvgenError(f"{out} is {kind}; give --out a folder of its own")
    final = out / FINAL_FOLDER
    if init_from is not None and final.exists() and final.samefile(init_from):
        raise SfvgenError(
            f"{final} is the model of --init-from, which this run would replace; give another --out"
        )
    if final.exists() and not ((out / RUN_FILE).is_file() or begun_stages(out)):
        raise SfvgenError(
            f"{final} is there already and was made by no run in {out}, which would replace it; "
            "give another --out"
        )


def _check_record(out: Path, record: dict[str, Any]) -> None:
    file = out / RUN_FILE
    if not file.is_file() or not (begun_stages(out) or (out / FINAL_FOLDER).exists()):
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


def write_run(out: Path, record: dict[str, Any], finished: bool = False) -> None:
    """Write the record into the run's folder.

    Args:
        out: The run's folder.
        record: What `run_record` gives for this run.
        finished: Whether its model is written.

    Raises:
        SfvgenError: It can't be written.
    """
    write_json(out / RUN_FILE, {**record, "finished": finished})


def is_finished(out: Path, record: dict[str, Any]) -> bool:
    """Whether this run has written its model already, after as many steps."""
    file = out / RUN_FILE
    if not (file.is_file() and (out / FINAL_FOLDER).is_dir()):
        return False
    return bool(json.loads(file.read_text()) == {**record, "finished": True})


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
