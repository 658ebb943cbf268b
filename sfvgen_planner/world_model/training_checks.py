"""What can't be trained, told before any work."""

from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.recipe import Recipe


def check_recipe(recipe: Recipe, store: EpisodeStore) -> None:
    """Refuse what a model can't be built from, before anything is read."""
    if not (recipe.autoencoder and recipe.world_model and recipe.inverse_dynamics):
        raise SfvgenError(
            f"the recipe {recipe.name} leaves out a stage; give the checkpoint to take it from "
            "with --init-from"
        )
    factor = 2 ** (len(recipe.autoencoder.block_out_channels) - 1)
    if recipe.world_model.transformer:
        factor *= recipe.world_model.transformer.patch_size
    height, width = store.spec.image_size
    if height != width or height % factor:
        raise SfvgenError(
            f"the store {store.path} has images of {height}x{width}, but this recipe needs square "
            f"images with a side that {factor} divides; collect again with --image-size"
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
