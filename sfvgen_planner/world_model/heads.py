"""What a checkpoint holds beside the video model: inverse dynamics and the heads on its latents."""

from pathlib import Path
from typing import NamedTuple, TypeVar

from sfvgen_policies.inverse_dynamics import InverseDynamics

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.world_model.checkpoint import (
    INVERSE_DYNAMICS_FOLDER,
    OUTCOME_HEAD_FOLDER,
    TEMPORAL_DISTANCE_FOLDER,
    loading_errors,
)
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from sfvgen_planner.world_model.pretrained import load_whole
from sfvgen_planner.world_model.temporal_distance import TemporalDistance

_Head = TypeVar("_Head", InverseDynamics, OutcomeHead, TemporalDistance)


class Heads(NamedTuple):
    """The small models that read a video.

    Attributes:
        inverse_dynamics: Reads the actions off it; None where the checkpoint holds none.
        outcome_head: Judges it; None before it is trained.
        temporal_distance: Tells how far it is from a goal image; None before it is trained.
    """

    inverse_dynamics: InverseDynamics | None
    outcome_head: OutcomeHead | None
    temporal_distance: TemporalDistance | None


def load_heads(folder: Path) -> Heads:
    """The heads of a checkpoint folder, in single precision.

    Raises:
        SfvgenError: There is no such folder, or a file is broken.
    """
    require(folder.is_dir(), f"there is no checkpoint folder {folder}")
    with loading_errors(folder):
        return Heads(
            _load(InverseDynamics, folder / INVERSE_DYNAMICS_FOLDER),
            _load(OutcomeHead, folder / OUTCOME_HEAD_FOLDER),
            _load(TemporalDistance, folder / TEMPORAL_DISTANCE_FOLDER),
        )


def required_inverse_dynamics(heads: Heads, folder: Path) -> InverseDynamics:
    """The inverse dynamics of a checkpoint, where there is no going on without.

    Raises:
        SfvgenError: The folder holds none.
    """
    if heads.inverse_dynamics is None:
        raise SfvgenError(
            f"{folder / INVERSE_DYNAMICS_FOLDER} is missing: planning from video and further "
            "training need a checkpoint with its inverse dynamics, as `sfvgen train` writes it"
        )
    return heads.inverse_dynamics


def _load(kind: type[_Head], folder: Path) -> _Head | None:
    if not folder.is_dir():
        return None
    head: _Head = load_whole(kind, folder)
    return head
