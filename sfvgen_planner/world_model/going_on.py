"""What a run that goes on from trained models takes from them."""

import logging
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from sfvgen_planner.data import EpisodeStore, StoreSpec
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.checkpoint import (
    OUTCOME_HEAD_FOLDER,
    TEMPORAL_DISTANCE_FOLDER,
    is_world_model,
)
from sfvgen_planner.world_model.heads import load_heads
from sfvgen_planner.world_model.models import Models
from sfvgen_planner.world_model.new_models import build_inverse_dynamics
from sfvgen_planner.world_model.objective import is_flow
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.recipe import Recipe, WorldModelRecipe
from sfvgen_planner.world_model.slow_learning import prediction_of
from sfvgen_planner.world_model.training_checks import check_model

logger = logging.getLogger(__name__)


def models_to_go_on_from(folder: Path, recipe: Recipe, store: EpisodeStore) -> Models:
    """All that a checkpoint folder or a text-to-video folder holds; what it lacks is made anew.

    Raises:
        SfvgenError: It does not fit the store, or can't go on with this recipe.
    """
    for name, part in (
        ("autoencoder", recipe.autoencoder),
        ("world_model.text", recipe.world_model and recipe.world_model.text),
    ):
        if part and part.pretrained is not None:
            raise SfvgenError(
                f"the recipe has {name}.pretrained, but the model of --init-from has its own; "
                "leave one of them out"
            )
    heads = load_heads(folder)
    if is_world_model(folder):
        model = VideoWorldModel.from_pretrained(folder)
    else:
        model = _load_base_model(folder, recipe, store.spec)
    check_model(model, store)
    if recipe.autoencoder is not None and not isinstance(model.vae, AutoencoderKL):
        raise SfvgenError(
            f"the vae of {folder} is a {type(model.vae).__name__}, which is not trained here; "
            "leave autoencoder out of the recipe"
        )
    inverse = heads.inverse_dynamics
    if inverse is None:
        if recipe.inverse_dynamics is None:
            raise SfvgenError(
                f"{folder} holds no inverse dynamics; add inverse_dynamics to the recipe"
            )
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            inverse = build_inverse_dynamics(recipe.inverse_dynamics, store.spec)
    return Models(model, inverse, heads.outcome_head, heads.temporal_distance)


def _load_base_model(folder: Path, recipe: Recipe, spec: StoreSpec) -> VideoWorldModel:
    """A text-to-video folder as a world model with the recipe's window and the data's actions.

    Args:
        folder: In the layout of `text-to-video-ms-1.7b`.
        recipe: Its sizes don't count.
        spec: The images, actions and environment of the data.

    Raises:
        SfvgenError: The folder is broken or does not fit the images, or the recipe does not train
            the world model.
    """
    slow = recipe.world_model
    if slow is None:
        raise SfvgenError(
            f"{folder} is a text-to-video model, which knows no actions yet; add world_model to "
            "the recipe"
        )
    return VideoWorldModel.from_pretrained(
        folder,
        num_past_frames=slow.num_past_frames,
        num_future_frames=slow.num_future_frames,
        image_size=spec.image_size[0],
        action_low=list(spec.action_low),
        action_high=list(spec.action_high),
        frame_skip=spec.frame_skip,
        env_id=spec.env_id,
        text_frozen=not slow.text.train,
    )


def going_on(recipe: WorldModelRecipe, model: VideoWorldModel) -> WorldModelRecipe:
    """The recipe with a trained model's window, and with what the model was trained to predict.

    Its noise schedule is the model's too, unless the recipe asks for another `shift`.

    Raises:
        SfvgenError: The recipe says that one of them is another.
    """
    own = {
        "num_past_frames": model.config.num_past_frames,
        "num_future_frames": model.config.num_future_frames,
        "prediction": prediction_of(model.scheduler),
    }
    for name, value in own.items():
        asked = getattr(recipe, name)
        if name in recipe.model_fields_set and asked != value:
            raise SfvgenError(
                f"the recipe's world_model has {name}: {asked}, but the model to go on from has "
                f"{value}; leave {name} out, or train from the start without --init-from"
            )
    if "shift" not in recipe.model_fields_set and is_flow(model.scheduler):
        own["shift"] = model.scheduler.config.shift
    return recipe.model_copy(update=own)


def keeps_memory(recipe: Recipe) -> bool:
    """Whether the recipe leaves all weights alone that a memory is written and read with."""
    return recipe.world_model is None and _keeps_latents(recipe)


def _keeps_latents(recipe: Recipe) -> bool:
    """Whether the recipe leaves the encoder alone."""
    return recipe.autoencoder is None or recipe.autoencoder.decoder_only


def leave_out_misfits(models: Models, recipe: Recipe, tell: bool) -> None:
    """Drop the heads that read latents which are about to change, unless they learn on."""
    if _keeps_latents(recipe):
        return
    for name in (OUTCOME_HEAD_FOLDER, TEMPORAL_DISTANCE_FOLDER):
        if getattr(models, name) is not None and getattr(recipe, name) is None:
            setattr(models, name, None)
            if tell:
                logger.warning(
                    "the %s does not fit the encoder that this recipe trains and is left out of "
                    "the new checkpoint; add %s: to the recipe to train it on",
                    name.replace("_", " "),
                    name,
                )
