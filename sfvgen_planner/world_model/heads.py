"""What a checkpoint holds beside the video model: inverse dynamics and the outcome head."""

from pathlib import Path
from typing import NamedTuple

from sfvgen_policies.inverse_dynamics import InverseDynamics

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.checkpoint import (
    INVERSE_DYNAMICS_FOLDER,
    OUTCOME_HEAD_FOLDER,
    loading_errors,
)
from sfvgen_planner.world_model.outcome_head import OutcomeHead


class Heads(NamedTuple):
    """The small models that read a video.

    Attributes:
        inverse_dynamics: Reads the actions off it.
        outcome_head: Judges it; None before it is trained.
    """

    inverse_dynamics: InverseDynamics
    outcome_head: OutcomeHead | None


def load_heads(folder: Path) -> Heads:
    """The heads of a checkpoint folder, in single precision.

    Raises:
        SfvgenError: The folder holds no inverse dynamics, or a file is broken.
    """
    if not (folder / INVERSE_DYNAMICS_FOLDER).is_dir():
        raise SfvgenError(
            f"{folder / INVERSE_DYNAMICS_FOLDER} is missing: planning from video needs a "
            "checkpoint with its inverse dynamics, as `sfvgen train` writes it"
        )
    with loading_errors(folder):
        inverse = InverseDynamics.from_pretrained(
            folder / INVERSE_DYNAMICS_FOLDER, use_safetensors=True
        )
    return Heads(inverse.float(), load_outcome_head(folder))


def load_outcome_head(folder: Path) -> OutcomeHead | None:
    """The outcome head of a checkpoint folder in single precision, None where it has none.

    Raises:
        SfvgenError: A file is broken.
    """
    if not (folder / OUTCOME_HEAD_FOLDER).is_dir():
        return None
    with loading_errors(folder):
        head = OutcomeHead.from_pretrained(folder / OUTCOME_HEAD_FOLDER, use_safetensors=True)
    return head.float()
