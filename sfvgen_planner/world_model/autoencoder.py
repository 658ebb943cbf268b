"""The frame autoencoder: built small, trained on single frames, frozen afterwards."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.recipe import AutoencoderRecipe


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
        assert isinstance(self.mean_image, Tensor)
        unusual = (images - self.mean_image).abs().amax(dim=1, keepdim=True)
        loss = ((1 + unusual) * (reconstruction.float() - images).square()).mean()
        kl: Tensor = posterior.kl().mean()
        return loss + self.kl_weight * kl


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
