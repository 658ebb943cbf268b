"""A memory on disk: a PEFT adapter folder with the memory's own settings beside it."""

import json
from dataclasses import asdict
from os import PathLike
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.files import replacing, write_json, writing_errors
from sfvgen_planner.memory.adapter import Adapters
from sfvgen_planner.memory.config import MemoryConfig
from sfvgen_planner.world_model.shipped import shipped_folder

MEMORY_FOLDER = "memory"
"""Folder of a checkpoint with the adapters that the slow-fast loop has trained."""
COUNTER = "num_writes"
"""Name of the number of chunks that a memory has written."""
_WEIGHTS_FILE = "adapter_model.safetensors"
_SETTINGS_FILE = "memory.json"


def trained_config(name_or_path: str | PathLike[str]) -> MemoryConfig | None:
    """Settings of the memory that a checkpoint's slow weights were trained with, if with any.

    Raises:
        SfvgenError: There is no such checkpoint, or its memory is broken.
    """
    trained = trained_adapter(name_or_path)
    return None if trained is None else trained[1]


def trained_adapter(
    name_or_path: str | PathLike[str],
) -> tuple[dict[str, Tensor], MemoryConfig] | None:
    """Tensors and settings of the memory in a checkpoint; None where it has none."""
    folder = shipped_folder(Path(name_or_path)) / MEMORY_FOLDER
    return read_adapter(folder)[:2] if folder.is_dir() else None


def write_adapter(
    folder: Path, adapters: Adapters, tensors: dict[str, Tensor], num_writes: int = 0
) -> None:
    """Write a PEFT adapter folder and the memory's own settings, each file in one go.

    Raises:
        SfvgenError: The folder cannot be written.
    """
    settings = {"config": asdict(adapters.config), COUNTER: num_writes}
    on_cpu = {name: value.cpu().contiguous() for name, value in tensors.items()}
    with writing_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / _WEIGHTS_FILE) as temporary:
            save_file(on_cpu, temporary)
        adapters.peft_settings().save_pretrained(str(folder))
    write_json(folder / _SETTINGS_FILE, settings)


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], MemoryConfig, int]:
    """The tensors, settings and number of writes that `write_adapter` wrote.

    Raises:
        SfvgenError: The folder is missing or broken.
    """
    try:
        tensors = load_file(folder / _WEIGHTS_FILE)
        settings = json.loads((folder / _SETTINGS_FILE).read_text())
        return tensors, MemoryConfig(**settings["config"]), int(settings[COUNTER])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise SfvgenError(
            f"{folder} holds no readable memory ({type(error).__name__}); "
            "give a folder that EpisodicMemory.save_pretrained wrote"
        ) from error
