"""Noise on the latents that a head learns from, because imagined ones are a little off."""

import torch
from torch import Tensor


def with_latent_noise(latents: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Latents with noise of a random level on half of the samples.

    The other half stays exact, as observed frames are.

    Args:
        latents: `(..., batch, channels, h, w)`; what belongs to one sample gets the same level.
        largest: Standard deviation of the most noise; levels are uniform up to it.
        generator: Draws all of it.

    Returns:
        Likewise.
    """
    levels = latents.shape[-4], 1, 1, 1

    def uniform() -> Tensor:
        return torch.rand(levels, generator=generator, device=latents.device)

    level = largest * uniform()
    level = level * (uniform() < 0.5)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    return latents + level * noise
