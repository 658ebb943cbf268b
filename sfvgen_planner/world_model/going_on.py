"""What a run that goes on from a checkpoint keeps of it."""

import logging

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.checkpoint import OUTCOME_HEAD_FOLDER, TEMPORAL_DISTANCE_FOLDER
from sfvgen_planner.world_model.models import Models
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.recipe import Recipe, WorldModelRecipe
from sfvgen_planner.world_model.slow_learning import prediction_of

logger = logging.getLogger(__name__)


def going_on(recipe: WorldModelRecipe, model: VideoWorldModel) -> WorldModelRecipe:
    """The recipe with a trained model's window, and with what the model was trained to predict.

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
