"""A world model with tiny random weights, for tests and trials without a checkpoint."""

from typing import Literal

import torch

from sfvgen_planner.world_model.autoencoder import build_autoencoder
from sfvgen_planner.world_model.denoiser import build_denoiser
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.recipe import (
    AutoencoderRecipe,
    Optimisation,
    TransformerRecipe,
    UNetRecipe,
)
from sfvgen_planner.world_model.slow_learning import build_scheduler
from sfvgen_planner.world_model.text import build_text_encoder, build_tokenizer

_DENOISERS: dict[str, UNetRecipe | TransformerRecipe] = {
    "unet": UNetRecipe(block_out_channels=(32, 32), attention_head_dim=8),
    "transformer": TransformerRecipe(
        num_layers=2, patch_size=2, num_attention_heads=4, attention_head_dim=8
    ),
}


def tiny_world_model(
    image_size: int = 64,
    action_size: int = 4,
    env_id: str = "",
    seed: int = 0,
    denoiser: Literal["unet", "transformer"] = "unet",
) -> VideoWorldModel:
    """A model of full shape and no skill; a call takes a fraction of a second on one core.

    Args:
        image_size: Height and width of a frame, a multiple of 16; of 32 for the transformer.
        action_size: Numbers in one action, each within [-1, 1].
        env_id: Recorded in the model's configuration.
        seed: Seed of the weights.
        denoiser: Kind of the `unet` component.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        autoencoder = AutoencoderRecipe(
            block_out_channels=(8, 8, 8, 8, 8),
            latent_channels=4,
            norm_num_groups=4,
            optimisation=Optimisation(steps=1, batch_size=1, learning_rate=1e-3),
        )
        tokenizer = build_tokenizer(["put the red cube on the blue pad"], 600, 16)
        return VideoWorldModel(
            vae=build_autoencoder(autoencoder, image_size),
            text_encoder=build_text_encoder(tokenizer, hidden_size=16, num_layers=1, num_heads=2),
            tokenizer=tokenizer,
            unet=build_denoiser(
                _DENOISERS[denoiser],
                latent_channels=4,
                latent_side=image_size // 16,
                action_size=action_size,
                text_size=16,
            ),
            scheduler=build_scheduler(),
            image_size=image_size,
            action_low=[-1.0] * action_size,
            action_high=[1.0] * action_size,
            env_id=env_id,
        )
