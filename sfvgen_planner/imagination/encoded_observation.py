"""A picture and its instruction as two small arrays, the same for real and imagined pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np

if TYPE_CHECKING:
    from sfvgen_planner.world_model import VideoWorldModel


class ObservationEncoder:
    """Encode pictures and instructions with the world model's own, frozen encoders.

    An observation is a dict of float32 arrays:

    - ``latents`` ``(C, h, w)``: of the picture, with about unit variance.
    - ``instruction`` ``(D,)``: the text encoder's hidden states less those of the empty
      instruction, summed over the tokens and divided by the root of their number; 0 for "".

    An imagined frame is encoded from its pixels as a real one is, though it was made from latents:
    so a policy sees both through the same eyes.

    Args:
        world_model: whose encoders these are.

    Attributes:
        image_size: height and width of the pictures.
        space: of one observation.
    """

    def __init__(self, world_model: VideoWorldModel) -> None:
        self._world_model = world_model
        self._texts: dict[str, np.ndarray] = {}
        self._empty = world_model.encode_instructions([""])[0]
        self.image_size: int = world_model.config.image_size
        blank = self(np.zeros((1, self.image_size, self.image_size, 3), np.uint8), [""])
        self.space = gym.spaces.Dict(
            {
                name: gym.spaces.Box(-np.inf, np.inf, values.shape[1:], np.float32)
                for name, values in blank.items()
            }
        )

    def __call__(self, frames: np.ndarray, instructions: Sequence[str]) -> dict[str, np.ndarray]:
        """Encode N pictures.

        Args:
            frames: ``(N, H, W, 3)`` uint8, of the world model's size.
            instructions: N of them.

        Returns:
            The entries of N observations, ``(N, ...)``.
        """
        latents = self._world_model.encode(frames[:, None])[:, :, 0]
        return {
            "latents": latents.cpu().numpy(),
            "instruction": np.stack([self._encoded_text(text) for text in instructions]),
        }

    def _encoded_text(self, text: str) -> np.ndarray:
        if text not in self._texts:
            states = self._world_model.encode_instructions([text])[0] - self._empty
            summed = states.float().sum(dim=0) / len(states) ** 0.5
            self._texts[text] = summed.cpu().numpy()
        return self._texts[text]
