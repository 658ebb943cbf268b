"""A memory on disk: a PEFT adapter folder with the memory's own settings beside it."""

import json
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.files import replacing, write_json, writing_errors
from sfvgen_planner.memory.adapter import Adapters
from sfvgen_planner.memory.config import MemoryConfig
from sfvgen_planner.memory.fingerprint import slow_fingerprint
from sfvgen_planner.world_model.checkpoint import MEMORY_FOLDER
from sfvgen_planner.world_model.shipped import checkpoint_folder

COUNTER = "num_writes"
"""Name of the number of chunks that a memory has written."""
SLOW_WEIGHTS = "slow_weights"
"""Name of the checksum of the slow weights that a memory belongs to."""
_WEIGHTS_FILE = "adapter_model.safetensors"
_SETTINGS_FILE = "memory.json"


@dataclass(frozen=True)
class SavedAdapter:
    """What an adapter folder holds.

    Attributes:
        folder: The folder.
        tensors: The adapters under PEFT's names.
        config: The memory's settings.
        num_writes: Chunks that the memory has written.
        slow_weights: `slow_fingerprint` of the denoiser that the adapters were trained with; None
            in a folder from before it was recorded.
    """

    folder: Path
    tensors: dict[str, Tensor]
    config: MemoryConfig
    num_writes: int
    slow_weights: str | None

    def require_fits(self, unet: nn.Module) -> None:
        """Raise an SfvgenError where the denoiser's weights are not those of `slow_weights`."""
        require(
            self.slow_weights in (None, slow_fingerprint(unet)),
            f"the memory in {self.folder} was trained with other slow weights than this model's; "
            "load the model that it came with",
        )

    def holds(self, tensors: dict[str, Tensor]) -> bool:
        """Whether `tensors` are among those saved, each but for rounding."""
        return all(
            name in self.tensors and _is_rounded(self.tensors[name].to(value.device), value)
            for name, value in tensors.items()
        )


def trained_config(name_or_path: str | PathLike[str]) -> MemoryConfig | None:
    """Settings of the memory that a checkpoint's slow weights were trained with, if with any.

    Raises:
        SfvgenError: There is no such checkpoint, or its memory is broken.
    """
    trained = trained_adapter(name_or_path)
    return None if trained is None else trained.config


def trained_adapter(name_or_path: str | PathLike[str]) -> SavedAdapter | None:
    """The memory in a checkpoint; None where it has none.

    Raises:
        SfvgenError: There is no such checkpoint, its memory is broken, or it is a memory alone.
    """
    checkpoint = checkpoint_folder(name_or_path)
    require(
        not (checkpoint / _SETTINGS_FILE).is_file(),
        f"{checkpoint} is one episode's memory, not a model; make a memory for its model, and let "
        "load_pretrained read this one",
    )
    folder = checkpoint / MEMORY_FOLDER
    return read_adapter(folder) if folder.is_dir() else None


def write_adapter(
    folder: Path, adapters: Adapters, tensors: dict[str, Tensor], num_writes: int = 0
) -> None:
    """Write a PEFT adapter folder and the memory's own settings, each file in one go.

    Raises:
        SfvgenError: The folder cannot be written.
    """
    settings = {
        "config": asdict(adapters.config),
        COUNTER: num_writes,
        SLOW_WEIGHTS: slow_fingerprint(adapters.unet),
    }
    on_cpu = {name: value.cpu().contiguous() for name, value in tensors.items()}
    # With the weights, too: a kill between two files leaves the settings of an earlier save.
    metadata = {"format": "pt", COUNTER: str(num_writes)}
    with writing_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / _WEIGHTS_FILE) as temporary:
            save_file(on_cpu, temporary, metadata)
        adapters.peft_settings().save_pretrained(str(folder))
    write_json(folder / _SETTINGS_FILE, settings)


def read_adapter(folder: Path) -> SavedAdapter:
    """What `write_adapter` wrote.

    Raises:
        SfvgenError: The folder is missing or broken.
    """
    try:
        with safe_open(folder / _WEIGHTS_FILE, framework="pt") as weights:
            tensors, metadata = weights.get_tensors(), weights.metadata() or {}
        settings = json.loads((folder / _SETTINGS_FILE).read_text())
        config = MemoryConfig(**settings["config"])
        num_writes = int(metadata.get(COUNTER, settings[COUNTER]))
        return SavedAdapter(folder, tensors, config, num_writes, settings.get(SLOW_WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise SfvgenError(
            f"{folder} holds no readable memory ({type(error).__name__}); "
            "give a folder that EpisodicMemory.save_pretrained wrote"
        ) from error


def _is_rounded(one: Tensor, other: Tensor) -> bool:
    """Whether the two are equal, or would be in the precision of the lower one."""
    return torch.equal(one.to(other.dtype), other) or torch.equal(one, other.to(one.dtype))
