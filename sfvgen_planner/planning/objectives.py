"""Objectives: costs of imagined futures. They see an imagination and nothing of the simulator."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import torch

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import Imagination


class Objective(Protocol):
    """Costs ``(N,)`` of N imagined futures; lower is better."""

    def __call__(self, imagination: Imagination) -> torch.Tensor:
        """Cost of each future."""


class GoalImage:
    """Mean squared distance between the last imagined frame and a goal image.

    Args:
        image: ``(H, W, 3)`` uint8 of the model's image size.
        space: ``"latent"`` compares the model's latents (nothing is decoded), ``"pixel"`` compares
            pixels scaled to 0..1.
    """

    def __init__(self, image: np.ndarray, space: Literal["latent", "pixel"] = "latent") -> None:
        if space not in ("latent", "pixel"):
            raise SfvgenError(f'GoalImage: space must be "latent" or "pixel", got {space!r}.')
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise SfvgenError(
                "GoalImage: the goal must be an image (H, W, 3) of uint8, "
                f"got {image.shape} of {image.dtype}"
            )
        self.image = image
        self.space = space
        self._goal_latent: tuple[object, torch.Tensor] | None = None

    def __call__(self, imagination: Imagination) -> torch.Tensor:
        """Cost of each future."""
        size = imagination.world_model.config.image_size
        if self.image.shape[:2] != (size, size):
            raise SfvgenError(
                f"GoalImage: the goal image is {self.image.shape[0]}x{self.image.shape[1]} pixels, "
                f"but the world model sees {size}x{size}; resize it"
            )
        if self.space == "latent":
            goal = self._encoded(imagination)
            return (imagination.last_latents.float() - goal).square().mean(dim=(1, 2, 3))
        frames = torch.from_numpy(imagination.last_frames).float()
        goal = torch.from_numpy(self.image).float()
        return ((frames - goal) / 255).square().mean(dim=(1, 2, 3))

    def _encoded(self, imagination: Imagination) -> torch.Tensor:
        """The goal's latent ``(C, h, w)``, encoded once per model."""
        model = imagination.world_model
        if self._goal_latent is None or self._goal_latent[0] is not model:
            self._goal_latent = model, model.encode(self.image[None, None])[0, :, 0].float()
        return self._goal_latent[1]
