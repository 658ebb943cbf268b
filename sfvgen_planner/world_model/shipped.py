"""Checkpoints by name: those that come with the package, folders and the Hugging Face Hub."""

from os import PathLike
from pathlib import Path

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.hub import local_folder
from sfvgen_planner.world_model.pipeline import VideoWorldModel

_CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"


def checkpoint_folder(name_or_path: str | PathLike[str]) -> Path:
    """The checkpoint folder of a shipped model's name or of a Hub id, or the given folder itself.

    Args:
        name_or_path: A folder, a shipped model's name or a Hub id (`user/name` or
            `user/name@revision`), in this order; the last is downloaded, see `local_folder`.

    Raises:
        SfvgenError: It is none of them, or the Hub can't be reached.
    """
    for folder in (Path(name_or_path), _CHECKPOINTS / name_or_path):
        if (folder / "model_index.json").is_file():
            return folder
    folder = local_folder(name_or_path)
    if folder.is_dir():
        return folder
    names = sorted(path.name for path in _CHECKPOINTS.glob("*") if path.is_dir())
    raise SfvgenError(
        f"no model called {name_or_path}: give a checkpoint folder, one of the shipped models "
        f"({', '.join(names) or 'none in this installation'}) or a Hugging Face Hub id (user/name)"
    )


def load_world_model(name_or_path: str | PathLike[str] = "tabletop") -> VideoWorldModel:
    """Load a shipped model by name, a checkpoint folder or a Hub id (`user/name@revision`).

    Raises:
        SfvgenError: There is no such model, the Hub can't be reached, or the folder is broken.
    """
    return VideoWorldModel.from_pretrained(checkpoint_folder(name_or_path))
