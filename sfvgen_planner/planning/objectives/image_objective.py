"""What objectives with a goal image share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import Imagination


class ImageObjective(ABC):
    """Compares imagined futures with a goal image.

    Args:
        image: ``(H, W, 3)`` uint8 of the model's image size.

    Raises:
        SfvgenError: where it is no such image.
    """

    def __init__(self, image: np.ndarray) -> None:
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise SfvgenError(
                f"{type(self).__name__}: the goal must be an image (H, W, 3) of uint8, "
                f"got {image.shape} of {image.dtype}"
            )
        self.image = image
        self._goal_latent: tuple[object, torch.Tensor] | None = None

    def __call__(self, imagination: Imagination) -> torch.Tensor:
        """Cost of each future.

        Raises:
            SfvgenError: the goal image has another size than the model's frames.
        """
        size = imagination.world_model.config.image_size
        if self.image.shape[:2] != (size, size):
            raise SfvgenError(
                f"{type(self).__name__}: the goal image is {self.image.shape[0]}x"
                f"{self.image.shape[1]} pixels, but the world model sees {size}x{size}; resize it"
            )
        return self._cost(imagination)

    @abstractmethod
    def _cost(self, imagination: Imagination) -> torch.Tensor:
        """Costs ``(N,)``."""

    def _encoded(self, imagination: Imagination) -> torch.Tensor:
        """The goal's latent ``(C, h, w)``, encoded once per model."""
        model = imagination.world_model
        if self._goal_latent is None or self._goal_latent[0] is not model:
            self._goal_latent = model, model.encode(self.image[None, None])[0, :, 0].float()
        return self._goal_latent[1]
