"""A recipe's models before training, built anew but for the pretrained components it names."""

from typing import Any, NamedTuple

from sfvgen_policies.inverse_dynamics import InverseDynamics
from transformers import CLIPTextModel, CLIPTokenizer

from sfvgen_planner.data import EpisodeStore, StoreSpec
from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.world_model.autoencoder import build_autoencoder
from sfvgen_planner.world_model.base_model import latent_geometry
from sfvgen_planner.world_model.denoiser import build_denoiser
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.models import Models
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from sfvgen_planner.world_model.outcome_learning import told_steps
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.pretrained import load_text, load_vae
from sfvgen_planner.world_model.recipe import (
    InverseDynamicsRecipe,
    OutcomeHeadRecipe,
    Recipe,
    TemporalDistanceRecipe,
)
from sfvgen_planner.world_model.slow_learning import build_scheduler
from sfvgen_planner.world_model.temporal_distance import TemporalDistance
from sfvgen_planner.world_model.text import build_text_encoder, build_tokenizer


class Parts(NamedTuple):
    """The pretrained components that a recipe names.

    Attributes:
        vae: An image autoencoder of diffusers; None where one is to be built.
        text: A text encoder and its tokenizer; None where they are to be built.
    """

    vae: Any = None
    text: tuple[CLIPTextModel, CLIPTokenizer] | None = None


def load_parts(recipe: Recipe, store: EpisodeStore) -> Parts:
    """The recipe's pretrained components; refuses what a model can't be built from.

    Raises:
        SfvgenError: A stage is missing, a component can't be loaded, or the store's images don't
            fit the autoencoder and the denoiser.
    """
    if not (recipe.autoencoder and recipe.world_model and recipe.inverse_dynamics):
        raise SfvgenError(
            f"the recipe {recipe.name} leaves out a stage; give the checkpoint to take it from "
            "with --init-from"
        )
    text, source = recipe.world_model.text, recipe.autoencoder.pretrained
    require(
        text.pretrained is not None or text.train is not False,
        f"the recipe {recipe.name} does not train its text encoder, which knows nothing yet; "
        "leave world_model.text.train out, or give world_model.text.pretrained",
    )
    vae = None if source is None else load_vae(source, recipe.autoencoder.subfolder)
    if vae is None:
        factor = 2 ** (len(recipe.autoencoder.block_out_channels) - 1)
    else:
        _, factor = latent_geometry(vae)
    if recipe.world_model.transformer:
        factor *= recipe.world_model.transformer.patch_size
    height, width = store.spec.image_size
    if height != width or height % factor:
        raise SfvgenError(
            f"the store {store.path} has images of {height}x{width}, but this recipe needs square "
            f"images with a side that {factor} divides; collect again with --image-size"
        )
    if text.pretrained is None:
        return Parts(vae, None)
    return Parts(vae, load_text(text.pretrained, text.subfolder, text.tokenizer_subfolder))


def build_models(recipe: Recipe, spec: StoreSpec, instructions: list[str], parts: Parts) -> Models:
    """A world model and inverse dynamics, untrained but for the pretrained parts.

    Args:
        recipe: Has an autoencoder, a world model and inverse dynamics.
        spec: The images, actions and environment of the data.
        instructions: What a new tokenizer is trained on.
        parts: Of this recipe.
    """
    assert recipe.inverse_dynamics is not None
    model = _build_world_model(recipe, spec, instructions, parts)
    return Models(model, build_inverse_dynamics(recipe.inverse_dynamics, spec))


def _build_world_model(
    recipe: Recipe, spec: StoreSpec, instructions: list[str], parts: Parts
) -> VideoWorldModel:
    assert recipe.autoencoder is not None
    assert recipe.world_model is not None
    side, text = spec.image_size[0], recipe.world_model.text
    vae = parts.vae
    if vae is None:
        vae = build_autoencoder(recipe.autoencoder, side)
    if parts.text is None:
        tokenizer = build_tokenizer(instructions, text.vocab_size, text.max_length)
        text_encoder = build_text_encoder(
            tokenizer, text.hidden_size, text.num_layers, text.num_heads
        )
    else:
        text_encoder, tokenizer = parts.text
    latent_channels, factor = latent_geometry(vae)
    return VideoWorldModel(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=build_denoiser(
            recipe.world_model.denoiser,
            latent_channels,
            side // factor,
            spec.action_size,
            text_encoder.config.hidden_size,
        ),
        scheduler=build_scheduler(recipe.world_model.prediction, recipe.world_model.shift),
        num_past_frames=recipe.world_model.num_past_frames,
        num_future_frames=recipe.world_model.num_future_frames,
        image_size=side,
        action_low=list(spec.action_low),
        action_high=list(spec.action_high),
        frame_skip=spec.frame_skip,
        env_id=spec.env_id,
        data_steps=0,
        text_frozen=parts.text is not None and not text.train,
    )


def build_inverse_dynamics(recipe: InverseDynamicsRecipe, spec: StoreSpec) -> InverseDynamics:
    """Untrained inverse dynamics of the recipe's sizes."""
    return InverseDynamics(
        image_size=spec.image_size[0],
        action_low=spec.action_low,
        action_high=spec.action_high,
        block_out_channels=recipe.block_out_channels,
        hidden_size=recipe.hidden_size,
    )


def build_outcome_head(
    recipe: OutcomeHeadRecipe, model: VideoWorldModel, table: FrameTable, success_ends: bool
) -> OutcomeHead:
    """An untrained head that fits the model's latents and tokens and the data's rewards."""
    channels, side, _ = model.latent_size
    spread = float(table.rewards[told_steps(table)].std())
    return OutcomeHead(
        latent_channels=channels,
        latent_side=side,
        vocab_size=len(model.tokenizer),
        hidden_size=recipe.hidden_size,
        num_blocks=recipe.num_blocks,
        # Rewards that are all the same have no spread.
        reward_scale=spread if spread > 0 else 1.0,
        success_ends=success_ends,
    )


def build_temporal_distance(
    recipe: TemporalDistanceRecipe, model: VideoWorldModel
) -> TemporalDistance:
    """An untrained head that fits the model's latents."""
    channels, side, _ = model.latent_size
    return TemporalDistance(
        latent_channels=channels,
        latent_side=side,
        hidden_size=recipe.hidden_size,
        num_blocks=recipe.num_blocks,
        max_frames=recipe.max_frames,
    )
