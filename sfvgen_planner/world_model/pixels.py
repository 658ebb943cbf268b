"""Frames to an image autoencoder's latents and back."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfvgen_planner.errors import SfvgenError


def check_frames(frames: np.ndarray | Tensor, side: int) -> Tensor:
    """Frames as a tensor.

    Raises:
        SfvgenError: They are not uint8 `(batch, frames, side, side, 3)`, or there is none.
    """
    pixels = frames if isinstance(frames, Tensor) else as_tensor(frames)
    fitting = pixels.dim() == 5 and pixels.shape[2:] == (side, side, 3) and pixels.numel() > 0
    if pixels.dtype != torch.uint8 or not fitting:
        raise SfvgenError(
            f"frames must be uint8 of shape (batch, frames, {side}, {side}, 3), "
            f"got {pixels.dtype} of shape {tuple(pixels.shape)}"
        )
    return pixels


def check_latents(latents: Tensor, latent_size: tuple[int, int, int]) -> Tensor:
    """The latents themselves.

    Raises:
        SfvgenError: They are not `(batch, channels, frames, h, w)` of the model's channels and
            cells, or there is none.
    """
    channels, height, width = latent_size
    fitting = latents.dim() == 5 and latents.shape[1] == channels and latents.numel() > 0
    if not fitting or latents.shape[3:] != (height, width):
        raise SfvgenError(
            f"latents must have the shape (batch, {channels}, frames, {height}, {width}) with at "
            f"least one frame, got {tuple(latents.shape)}"
        )
    return latents


def encode_frames(vae: Any, frames: Tensor) -> Tensor:
    """Single frames uint8 `(N, H, W, 3)` to latents `(N, channels, h, w)`.

    Latents are float32, shifted and scaled to about zero mean and unit variance.
    """
    images = frames.permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1
    shift = vae.config.get("shift_factor") or 0
    return ((encode_images(vae, images) - shift) * vae.config.scaling_factor).float()


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Latents `(batch, channels, frames, h, w)` to frames uint8 `(batch, frames, H, W, 3)`."""
    batch, _, num_frames = latents.shape[:3]
    flat = latents.to(vae.dtype).transpose(1, 2).flatten(0, 1)
    shift = vae.config.get("shift_factor") or 0
    flat = flat / vae.config.scaling_factor + shift
    images = vae.decode(flat).sample.clamp(-1, 1)
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    return pixels.unflatten(0, (batch, num_frames))


def encode_images(vae: Any, images: Tensor) -> Tensor:
    """Raw latents `(batch, channels, h, w)` of images `(batch, 3, H, W)` in [-1, 1].

    The most likely ones, where the autoencoder gives a distribution.
    """
    encoded = vae.encode(images)
    latents: Tensor = (
        encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    )
    return latents


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor of any array; views with negative strides are copied, which torch can't hold."""
    return torch.from_numpy(np.ascontiguousarray(array))
