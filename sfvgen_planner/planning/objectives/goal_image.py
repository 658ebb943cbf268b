"""The distance from the last imagined frame to a goal image."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from sfvgen_planner.errors import SfvgenError, require_count
from sfvgen_planner.imagination import Imagination
from sfvgen_planner.planning.objectives.image_objective import ImageObjective


class GoalImage(ImageObjective):
    """Squared distance between the last imagined frame and a goal image, over an image pyramid.

    A small thing in the wrong place costs the same wherever it is as long as it does not overlap
    with where it should be, so the mean squared error alone gives a search nothing to follow. The
    coarser levels of a pyramid widen the reach: level k compares both images blurred and shrunk k
    times by two, and weighs 4 to the power of k, so that each counts about the same.

    Args:
        image: ``(H, W, 3)`` uint8 of the model's image size.
        space: ``"latent"`` compares the model's latents (nothing is decoded), ``"pixel"`` compares
            pixels scaled to 0..1.
        num_levels: levels of the pyramid, as far as the size allows; 1 is the plain mean squared
            error.

    Raises:
        SfvgenError: where the image, the space or the number of levels is invalid.
    """

    def __init__(
        self,
        image: np.ndarray,
        space: Literal["latent", "pixel"] = "latent",
        num_levels: int = 5,
    ) -> None:
        if space not in ("latent", "pixel"):
            raise SfvgenError(f'GoalImage: space must be "latent" or "pixel", got {space!r}')
        require_count("GoalImage: num_levels", num_levels)
        super().__init__(image)
        self.space = space
        self.num_levels = num_levels

    def _cost(self, imagination: Imagination) -> torch.Tensor:
        if self.space == "latent":
            difference = imagination.last_latents.float() - self._encoded(imagination)
        else:
            difference = _pixels(imagination.last_frames) - _pixels(self.image)
        return pyramid_energy(difference, self.num_levels)


def pyramid_energy(images: torch.Tensor, num_levels: int) -> torch.Tensor:
    """Weighted sum over pyramid levels of the mean square of images ``(N, C, H, W)``: ``(N,)``."""
    energy = images.square().mean(dim=(1, 2, 3))
    for level in range(1, num_levels):
        if min(images.shape[-2:]) < 4:
            break
        padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
        images = torch.nn.functional.avg_pool2d(padded, kernel_size=4, stride=2)
        energy = energy + 4.0**level * images.square().mean(dim=(1, 2, 3))
    return energy


def _pixels(images: np.ndarray) -> torch.Tensor:
    """Pictures ``(..., H, W, 3)`` uint8 as ``(..., 3, H, W)`` in 0..1."""
    return torch.from_numpy(np.moveaxis(images, -1, -3).astype(np.float32) / 255)
