"""What can't be trained, told before any work."""

from pathlib import Path

from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.recipe import AutoencoderRecipe

AUTOENCODER_STAGE = "autoencoder"


def check_latents_stay(recipe: AutoencoderRecipe | None, out: Path) -> None:
    """Refuse to train an autoencoder on whose latents the run has trained other stages already.

    Args:
        recipe: the autoencoder's, if it is trained.
        out: the run's folder.
    """
    if recipe is None or recipe.optimisation is None or recipe.decoder_only:
        return
    own = out / AUTOENCODER_STAGE
    steps = [int(folder.name.rpartition("-")[2]) for folder in own.glob("checkpoint-*")]
    later = sorted({f.parent for f in out.glob("*/checkpoint-*")} - {own})
    if steps and later and max(steps) < recipe.optimisation.steps:
        raise SfvgenError(
            f"{later[0]} was trained on the latents of an autoencoder of {max(steps)} steps, which "
            f"{recipe.optimisation.steps} steps would change; train into another --out folder"
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
