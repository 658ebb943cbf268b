"""The frame autoencoder: built small, trained on single frames, frozen afterwards."""

import math
from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.pixels import decode_images
from sfvgen_planner.world_model.recipe import AutoencoderRecipe
from sfvgen_planner.world_model.slow_learning import pick

FEW_STEPS = (1, 2, 4)
"""Sampler steps that a decoder of imagined frames is trained for."""


def build_autoencoder(recipe: AutoencoderRecipe, image_size: int) -> AutoencoderKL:
    """An untrained `AutoencoderKL` of the recipe's size."""
    levels = len(recipe.block_out_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=recipe.block_out_channels,
        layers_per_block=recipe.layers_per_block,
        latent_channels=recipe.latent_channels,
        norm_num_groups=recipe.norm_num_groups,
        sample_size=image_size,
    )


class AutoencoderObjective(nn.Module):
    """Squared error and KL loss of single frames.

    Pixels that differ from the data set's mean image count up to three times as much: on a still
    table the few pixels of the robot and the objects matter most.
    """

    def __init__(self, vae: AutoencoderKL, recipe: AutoencoderRecipe, table: FrameTable) -> None:
        super().__init__()
        self.vae = vae
        self.kl_weight = recipe.kl_weight
        sample = table.frames[:: max(1, len(table.frames) // 2000)]
        mean_image = (sample.float() / 127.5 - 1).mean(dim=0).permute(2, 0, 1)
        self.register_buffer("mean_image", mean_image, persistent=False)

    def forward(self, frames: Tensor, noise: Tensor) -> Tensor:
        """Loss of uint8 frames `(batch, H, W, 3)`; `noise` `(batch, channels, h, w)` samples z."""
        images = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        posterior = self.vae.encode(images).latent_dist
        reconstruction = self.vae.decode(posterior.mean + posterior.std * noise).sample
        kl: Tensor = posterior.kl().mean()
        return self._error(reconstruction, images) + self.kl_weight * kl

    def _error(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        assert isinstance(self.mean_image, Tensor)
        unusual = (images - self.mean_image).abs().amax(dim=1, keepdim=True)
        return ((1 + unusual) * (reconstruction.float() - images).square()).mean()


class DecoderObjective(AutoencoderObjective):
    """The same squared error of frames decoded from given latents: the decoder alone learns."""

    def forward(self, frames: Tensor, latents: Tensor) -> Tensor:
        """Loss of uint8 frames `(batch, H, W, 3)` and latents `(batch, channels, h, w)`."""
        images = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        return self._error(decode_images(self.vae, latents), images)


def frame_batches(
    table: FrameTable, batch_size: int, latent_size: tuple[int, int, int]
) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    """Random frames and the noise that samples their latents."""

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        device = table.frames.device
        rows = torch.randint(len(table.frames), (batch_size,), generator=generator, device=device)
        noise = torch.randn(batch_size, *latent_size, generator=generator, device=device)
        return table.frames[rows], noise

    return draw


def decoder_batches(
    table: FrameTable, model: VideoWorldModel, recipe: AutoencoderRecipe, batch_size: int
) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    """Random frames and their latents, a share of them as the denoiser imagines them.

    What is imagined is a little off, and the less so in pixels the better the decoder knows it.
    """
    num_past, num_future = model.config.num_past_frames, model.config.num_future_frames
    num_windows = math.ceil(recipe.imagined_share * batch_size / num_future)
    num_alone = max(0, batch_size - num_windows * num_future)
    starts = table.window_starts(num_past + num_future) if num_windows else None
    device = table.frames.device

    @torch.no_grad()
    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(table.frames), (num_alone,), generator=generator, device=device)
        latents = []
        if num_alone:
            latents.append(model.encode(table.frames[rows][None])[0].transpose(0, 1))
        if starts is not None:
            uniform = torch.rand(num_windows, 1, generator=generator, device=device)
            window = pick(starts, uniform) + torch.arange(num_past + num_future, device=device)
            host = np.random.default_rng(generator.initial_seed())
            imagined = model(
                table.frames[window[:, :num_past]],
                actions=model.denormalise_actions(table.actions[window[:, num_past - 1 : -1]]),
                num_inference_steps=int(host.choice(FEW_STEPS)),
                generator=generator,
                output_type="latent",
            ).latents
            rows = torch.cat([rows, window[:, num_past:].flatten()])
            latents.append(imagined.transpose(1, 2).flatten(0, 1))
        return table.frames[rows], torch.cat(latents)

    return draw


@torch.no_grad()
def calibrate_latents(vae: AutoencoderKL, table: FrameTable, num_frames: int = 4096) -> None:
    """Set the autoencoder's shift and scale so that latents have zero mean and unit variance."""
    stride = max(1, len(table.frames) // num_frames)
    means = []
    for batch in table.frames[::stride].split(512):
        images = batch.permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1
        means.append(vae.encode(images).latent_dist.mode())
    latents = torch.cat(means)
    vae.register_to_config(
        shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item()
    )
