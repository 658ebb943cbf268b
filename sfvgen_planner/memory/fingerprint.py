"""Checksums of a world model's weights: which model a memory belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfvgen_planner.memory.adapter import slow_weights
from sfvgen_planner.world_model import VideoWorldModel


def fingerprint(world_model: VideoWorldModel) -> str:
    """A checksum of the weights that a memory depends on, whatever is written in one.

    The same in whatever precision a checkpoint of float16 weights is loaded, as training ends in:
    all are rounded to bfloat16, to which float16 and float32 of the same weights round alike.
    Weights that float16 does not hold are rounded twice on the way through it, and so are others.

    Returns:
        SHA-256, in hexadecimal, of the autoencoder's and the denoiser's own weights and of those of
        an attached memory's adapters that all memories share.
    """
    digest = hashlib.sha256()
    for part in (world_model.vae, world_model.unet):
        _add(digest, slow_weights(part))
    return digest.hexdigest()


def slow_fingerprint(unet: nn.Module, with_adapters: bool = False) -> str:
    """A checksum of the denoiser's own weights, in the precisions that `fingerprint` tells.

    Args:
        unet: The denoiser.
        with_adapters: Also of what all memories of an attached one share.

    Returns:
        SHA-256, in hexadecimal.
    """
    digest = hashlib.sha256()
    weights = slow_weights(unet)
    if not with_adapters:
        weights = {name: value for name, value in weights.items() if ".lora_" not in name}
    _add(digest, weights)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, weights: Mapping[str, Tensor]) -> None:
    for name in sorted(weights):
        tensor = weights[name].detach().to(torch.bfloat16).cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
