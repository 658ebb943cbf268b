"""Untrained models of a recipe's sizes."""

from sfvgen_policies.inverse_dynamics import InverseDynamics

from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.world_model.autoencoder import build_autoencoder
from sfvgen_planner.world_model.denoiser import build_denoiser
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.models import Models
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from sfvgen_planner.world_model.outcome_learning import told_steps
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.recipe import OutcomeHeadRecipe, Recipe, TemporalDistanceRecipe
from sfvgen_planner.world_model.slow_learning import build_scheduler
from sfvgen_planner.world_model.temporal_distance import TemporalDistance
from sfvgen_planner.world_model.text import build_text_encoder, build_tokenizer


def build_models(recipe: Recipe, store: EpisodeStore, instructions: list[str]) -> Models:
    """Untrained models of the recipe's sizes for the store's images and actions."""
    assert recipe.autoencoder is not None
    assert recipe.world_model is not None
    assert recipe.inverse_dynamics is not None
    spec = store.spec
    side = spec.image_size[0]
    text = recipe.world_model.text
    tokenizer = build_tokenizer(instructions, text.vocab_size, text.max_length)
    model = VideoWorldModel(
        vae=build_autoencoder(recipe.autoencoder, side),
        text_encoder=build_text_encoder(
            tokenizer, text.hidden_size, text.num_layers, text.num_heads
        ),
        tokenizer=tokenizer,
        unet=build_denoiser(
            recipe.world_model.denoiser,
            recipe.autoencoder.latent_channels,
            side // 2 ** (len(recipe.autoencoder.block_out_channels) - 1),
            spec.action_size,
            text.hidden_size,
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
    )
    inverse = InverseDynamics(
        image_size=side,
        action_low=spec.action_low,
        action_high=spec.action_high,
        block_out_channels=recipe.inverse_dynamics.block_out_channels,
        hidden_size=recipe.inverse_dynamics.hidden_size,
    )
    return Models(model, inverse)


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
