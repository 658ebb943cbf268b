"""All models of a checkpoint folder together, read and written."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sfvgen_policies.inverse_dynamics import InverseDynamics

from sfvgen_planner.world_model.checkpoint import (
    INVERSE_DYNAMICS_FOLDER,
    OUTCOME_HEAD_FOLDER,
    TEMPORAL_DISTANCE_FOLDER,
    finish_folder,
)
from sfvgen_planner.world_model.heads import load_heads, required_inverse_dynamics
from sfvgen_planner.world_model.model_card import write_model_card
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.temporal_distance import TemporalDistance


@dataclass
class Models:
    """What a checkpoint folder holds.

    Attributes:
        world_model: The video world model.
        inverse_dynamics: Reads actions off its videos.
        outcome_head: Judges its videos; None before it is trained.
        temporal_distance: Tells how far they are from a goal image; None before it is trained.
    """

    world_model: VideoWorldModel
    inverse_dynamics: InverseDynamics
    outcome_head: OutcomeHead | None = None
    temporal_distance: TemporalDistance | None = None


def load_models(folder: Path) -> Models:
    """All that a checkpoint folder holds, in single precision."""
    model, heads = VideoWorldModel.from_pretrained(folder), load_heads(folder)
    inverse_dynamics = required_inverse_dynamics(heads, folder)
    return Models(model, inverse_dynamics, heads.outcome_head, heads.temporal_distance)


def save_checkpoint(
    models: Models, folder: Path, write_more: Callable[[Path], None] | None = None
) -> None:
    """Write all models in half precision, and a model card, under a temporary name, then rename.

    Args:
        models: What to write.
        folder: Where to; what is there already is replaced.
        write_more: Called with the temporary folder, for what belongs to the checkpoint besides.
    """
    model = models.world_model
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    heads = {
        INVERSE_DYNAMICS_FOLDER: models.inverse_dynamics,
        OUTCOME_HEAD_FOLDER: models.outcome_head,
        TEMPORAL_DISTANCE_FOLDER: models.temporal_distance,
    }
    modules = [model.vae, model.text_encoder, model.unet, *filter(None, heads.values())]
    try:
        for module in modules:
            # Not the module's own `to`, which warns of layers that these models do not have.
            torch.nn.Module.to(module, torch.float16)
        model.save_pretrained(temporary)
        for name, head in heads.items():
            if head is not None:
                head.save_pretrained(temporary / name)
        if write_more is not None:
            write_more(temporary)
        write_model_card(temporary, model.config)
        finish_folder(temporary)
    except BaseException:
        # On a full disk, half a checkpoint takes the room of others.
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        for module in modules:
            torch.nn.Module.to(module, torch.float32)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
