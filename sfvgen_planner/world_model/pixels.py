"""Frames to an image autoencoder's latents and back."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfvgen_planner.errors import SfvgenError


def encode_frames(vae: Any, frames: np.ndarray | Tensor, side: int, device: torch.device) -> Tensor:
    """Frames uint8 `(batch, frames, side, side, 3)` to latents `(batch, channels, frames, h, w)`.

    Latents are float32 on `device`, shifted and scaled to about zero mean and unit variance.

    Raises:
        SfvgenError: The frames are not uint8 or not of the model's size.
    """
    pixels = frames if isinstance(frames, Tensor) else as_tensor(frames)
    if pixels.dtype != torch.uint8 or pixels.dim() != 5 or pixels.shape[2:] != (side, side, 3):
        raise SfvgenError(
            f"frames must be uint8 of shape (batch, frames, {side}, {side}, 3), "
            f"got {pixels.dtype} of shape {tuple(pixels.shape)}"
        )
    batch, num_frames = pixels.shape[:2]
    images = pixels.to(device).flatten(0, 1).permute(0, 3, 1, 2)
    images = images.to(vae.dtype) / 127.5 - 1
    shift = vae.config.get("shift_factor") or 0
    latents = (encode_images(vae, images) - shift) * vae.config.scaling_factor
    return latents.float().unflatten(0, (batch, num_frames)).transpose(1, 2)


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
