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

    Returns:
        SHA-256, in hexadecimal, of the autoencoder's and the denoiser's own weights and of those of
        an attached memory's adapters that all memories share.
    """
    digest = hashlib.sha256()
    for part in (world_model.vae, world_model.unet):
        _add(digest, slow_weights(part))
    return digest.hexdigest()


def slow_fingerprint(unet: nn.Module, with_adapters: bool = False) -> str:
    """A checksum of the denoiser's own weights, in any precision.

    Args:
        unet: The denoiser.
        with_adapters: Also of what all memories of an attached one share.

    Returns:
        SHA-256, in hexadecimal, of the weights as bfloat16: of what a checkpoint holds in half
        precision, single, half and bfloat16 precision are all rounded to the same numbers.
    """
    digest = hashlib.sha256()
    weights = slow_weights(unet)
    if not with_adapters:
        weights = {name: value for name, value in weights.items() if ".lora_" not in name}
    _add(digest, {name: value.to(torch.bfloat16) for name, value in weights.items()})
    return digest.hexdigest()


def _add(digest: hashlib._Hash, weights: Mapping[str, Tensor]) -> None:
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
