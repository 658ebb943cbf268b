"""What can't be trained, told before any work."""

import logging

from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.data.recipe import DataRecipe
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.pipeline import VideoWorldModel

logger = logging.getLogger(__name__)


def warn_of_other_data(recipe: DataRecipe, store: EpisodeStore) -> None:
    """Say where a store is of another environment, or other frames, than a recipe's own data."""
    told = (recipe.env_id, recipe.frame_skip), (store.spec.env_id, store.spec.frame_skip)
    if told[0] != told[1]:
        logger.warning(
            "the recipe's data are of %s with frame_skip %d, but %s is of %s with frame_skip %d",
            *told[0],
            store.path,
            *told[1],
        )


def check_model(model: VideoWorldModel, store: EpisodeStore) -> None:
    """Refuse a store that a trained model can't go on learning from."""
    spec, side = store.spec, model.config.image_size
    if spec.image_size != (side, side):
        raise SfvgenError(
            f"the store {store.path} has images of {spec.image_size[0]}x{spec.image_size[1]}, but "
            f"the model imagines {side}x{side}; collect again with --image-size {side}"
        )
    if spec.frame_skip != model.config.frame_skip:
        raise SfvgenError(
            f"the store {store.path} has {spec.frame_skip} environment steps per frame, but the "
            f"model's frames are {model.config.frame_skip} apart; collect again with --frame-skip "
            f"{model.config.frame_skip}"
        )
    bounds = (list(spec.action_low), list(spec.action_high))
    if bounds != (list(model.config.action_low), list(model.config.action_high)):
        raise SfvgenError(
            f"the store {store.path} has {spec.action_size} action numbers between {bounds[0]} and "
            f"{bounds[1]}, but the model has {model.action_size} between "
            f"{model.config.action_low} and {model.config.action_high}; use the model's environment"
        )
