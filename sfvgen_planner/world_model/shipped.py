"""The checkpoints that come with the package."""

from pathlib import Path

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.pipeline import VideoWorldModel

_CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"


def shipped_folder(name_or_path: str | Path) -> Path:
    """The checkpoint folder of a shipped model's name, or the given folder itself.

    Raises:
        SfvgenError: It is neither.
    """
    shipped = _CHECKPOINTS / str(name_or_path)
    for folder in (Path(name_or_path), shipped):
        if (folder / "model_index.json").is_file():
            return folder
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    names = sorted(path.name for path in _CHECKPOINTS.glob("*") if path.is_dir())
    raise SfvgenError(
        f"no model called {name_or_path}: give a checkpoint folder or one of the shipped models "
        f"({', '.join(names) or 'none in this installation'})"
    )


def load_world_model(name_or_path: str | Path = "tabletop") -> VideoWorldModel:
    """Load a shipped model by name, or a checkpoint folder.

    Raises:
        SfvgenError: There is no such model, or its folder is broken.
    """
    return VideoWorldModel.from_pretrained(shipped_folder(name_or_path))
