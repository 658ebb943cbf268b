"""The three training stages of a recipe, and the checkpoint folder they end in."""

import logging
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from sfvgen_policies.inverse_dynamics import InverseDynamics

from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.autoencoder import (
    AutoencoderObjective,
    build_autoencoder,
    calibrate_latents,
    frame_batches,
)
from sfvgen_planner.world_model.checkpoint import write_manifest
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.inverse_learning import InverseObjective, pair_batches
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.recipe import Recipe
from sfvgen_planner.world_model.slow_learning import (
    SlowObjective,
    build_scheduler,
    build_unet,
    slow_batches,
)
from sfvgen_planner.world_model.text import build_text_encoder, build_tokenizer
from sfvgen_planner.world_model.trainer import train

logger = logging.getLogger(__name__)

INVERSE_DYNAMICS_FOLDER = "inverse_dynamics"
FINAL_FOLDER = "model"


def check_sizes(recipe: Recipe, store: EpisodeStore) -> None:
    """Refuse a store that the recipe's model can't learn from, before anything is read.

    Raises:
        SfvgenError: The images are not square, or not a multiple of the autoencoder's factor.
    """
    factor = 2 ** (len(recipe.autoencoder.block_out_channels) - 1)
    height, width = store.spec.image_size
    if height != width or height % factor:
        raise SfvgenError(
            f"the store {store.path} has images of {height}x{width}, but this recipe needs square "
            f"images with a side that {factor} divides; collect again with --image-size"
        )


def build_world_model(
    recipe: Recipe, store: EpisodeStore, instructions: list[str]
) -> VideoWorldModel:
    """An untrained model of the recipe's sizes for the store's images and actions."""
    spec = store.spec
    side = spec.image_size[0]
    text = recipe.world_model.text
    tokenizer = build_tokenizer(instructions, text.vocab_size, text.max_length)
    return VideoWorldModel(
        vae=build_autoencoder(recipe.autoencoder, side),
        text_encoder=build_text_encoder(
            tokenizer, text.hidden_size, text.num_layers, text.num_heads
        ),
        tokenizer=tokenizer,
        unet=build_unet(
            recipe.world_model.unet,
            recipe.autoencoder.latent_channels,
            side // 2 ** (len(recipe.autoencoder.block_out_channels) - 1),
            spec.action_size,
            text.hidden_size,
        ),
        scheduler=build_scheduler(),
        num_past_frames=recipe.world_model.num_past_frames,
        num_future_frames=recipe.world_model.num_future_frames,
        image_size=side,
        action_low=list(spec.action_low),
        action_high=list(spec.action_high),
        frame_skip=spec.frame_skip,
        env_id=spec.env_id,
    )


def train_recipe(recipe: Recipe, data: Path, out: Path) -> Path:
    """Train autoencoder, world model and inverse dynamics; resume whatever `out` holds already.

    Args:
        recipe: Sizes and optimisation of each stage.
        data: Episode store made by `sfvgen collect`.
        out: Folder for the stages' checkpoints; the finished model goes to `out/model`.

    Returns:
        The finished checkpoint folder.

    Raises:
        SfvgenError: The store is empty or does not fit the recipe, or `out` can't be written or
            holds another run.
        KeyboardInterrupt: The run was interrupted; the same call resumes it.
    """
    store = EpisodeStore.open(data)
    check_sizes(recipe, store)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SfvgenError(
            f"can't write to {out} ({error.strerror}); give another --out folder"
        ) from error
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        # Without this, several processes on a machine without a GPU each train alone.
        cpu=not torch.accelerator.is_available(),
    )
    table = FrameTable.from_store(store, accelerator.device)
    model = build_world_model(recipe, store, table.instructions)
    inverse = InverseDynamics(
        image_size=model.config.image_size,
        action_low=tuple(model.config.action_low),
        action_high=tuple(model.config.action_high),
        block_out_channels=recipe.inverse_dynamics.block_out_channels,
        hidden_size=recipe.inverse_dynamics.hidden_size,
    )
    model.to(accelerator.device)

    train(
        AutoencoderObjective(model.vae, recipe.autoencoder, table),
        frame_batches(table, recipe.autoencoder.optimisation.batch_size, model.latent_size),
        recipe.autoencoder.optimisation,
        out / "autoencoder",
        accelerator,
        recipe.seed,
        "autoencoder",
    )
    model.vae.requires_grad_(False)
    calibrate_latents(model.vae, table)
    train(
        SlowObjective(model),
        slow_batches(table.encoded(model), model, recipe.world_model),
        recipe.world_model.optimisation,
        out / "world_model",
        accelerator,
        recipe.seed + 1,
        "world model",
    )
    train(
        InverseObjective(inverse),
        pair_batches(table, model, recipe.inverse_dynamics.optimisation.batch_size),
        recipe.inverse_dynamics.optimisation,
        out / INVERSE_DYNAMICS_FOLDER,
        accelerator,
        recipe.seed + 2,
        "inverse dynamics",
    )
    final = out / FINAL_FOLDER
    if accelerator.is_main_process:
        save_checkpoint(model, inverse, final)
    accelerator.wait_for_everyone()
    return final


def save_checkpoint(model: VideoWorldModel, inverse: InverseDynamics, folder: Path) -> None:
    """Write both models in half precision under a temporary name, then rename."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for module in (model.vae, model.text_encoder, model.unet, inverse):
        module.to(torch.float16)
    model.save_pretrained(temporary)
    inverse.save_pretrained(temporary / INVERSE_DYNAMICS_FOLDER)
    write_manifest(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    for module in (model.vae, model.text_encoder, model.unet, inverse):
        module.to(torch.float32)
