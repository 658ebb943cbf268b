"""What the heads on the latents are made of."""

import torch
from torch import Tensor, nn

from sfvgen_planner.errors import require


class ResidualBlock(nn.Module):
    """Residual convolutions on a map of features.

    Args:
        hidden_size: Channels of the map and width of a text's state, a multiple of 8.
        reads_text: Whether a text scales and shifts each channel (FiLM, Perez et al., 2018), in
            place of learned constants.
    """

    def __init__(self, hidden_size: int, reads_text: bool) -> None:
        super().__init__()
        self.mix = nn.Conv2d(hidden_size, hidden_size, kernel_size=1)
        self.look = nn.Conv2d(hidden_size, hidden_size, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(8, hidden_size, affine=not reads_text)
        self.film = nn.Linear(hidden_size, 2 * hidden_size) if reads_text else None

    def forward(self, features: Tensor, text: Tensor | None = None) -> Tensor:
        """Features `(batch, hidden_size, h, w)` to such; `text` is `(batch, hidden_size)`."""
        mixed = nn.functional.silu(self.mix(features))
        looked = self.norm(self.look(mixed))
        if self.film is not None:
            scale, shift = self.film(text)[:, :, None, None].chunk(2, dim=1)
            looked = (1 + scale) * looked + shift
        return mixed + nn.functional.silu(looked)


class Reader(nn.Module):
    """A few numbers from a map of features, from its channels' means and maxima.

    Args:
        hidden_size: Channels of the map.
        num_outputs: How many numbers.
    """

    def __init__(self, hidden_size: int, num_outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * hidden_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, num_outputs)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features `(batch, hidden_size, h, w)` to numbers `(batch, num_outputs)`."""
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        numbers: Tensor = self.layers(pooled)
        return numbers


def require_latents(latents: Tensor, shape: tuple[int, ...], head: str) -> None:
    """Refuse latents `(batch, ...)` that a head was not made for.

    Args:
        latents: What it is given.
        shape: `(channels, h, w)` that it reads.
        head: What it is called.

    Raises:
        SfvgenError: The shapes differ.
    """
    require(
        tuple(latents.shape[1:]) == shape,
        f"this {head} reads latents of the shape {shape}, got {tuple(latents.shape[1:])}: take "
        "the head of the same checkpoint as the model",
    )
