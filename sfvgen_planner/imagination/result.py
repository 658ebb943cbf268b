"""What a world model imagined: latents at once, pixels when somebody asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from sfvgen_planner.errors import require

if TYPE_CHECKING:
    from sfvgen_planner.world_model import VideoWorldModel


@dataclass(frozen=True)
class Imagination:
    """N imagined futures of T frames each, which is all that an objective gets to see.

    Attributes:
        latents: scaled latents ``(N, C, T, h, w)`` on the model's device.
        present_latents: those of the frame that they all set out from ``(C, h, w)``.
        world_model: the model that made them; it decodes them and encodes goals to compare with.
        instruction: the language command the futures were conditioned on, if any.
        actions: the ``(N, T, A)`` actions, in env units, they were conditioned on, if any.
    """

    latents: torch.Tensor
    present_latents: torch.Tensor
    world_model: VideoWorldModel
    instruction: str | None = None
    actions: torch.Tensor | None = None

    def __len__(self) -> int:
        """Number of futures N."""
        return self.latents.shape[0]

    @property
    def num_frames(self) -> int:
        """Imagined frames per future T, the present frame not counted."""
        return self.latents.shape[2]

    @cached_property
    def frames(self) -> np.ndarray:
        """Decoded frames ``(N, T, H, W, 3)`` uint8; decoded on first use and kept."""
        return self.world_model.decode(self.latents)

    @cached_property
    def last_frames(self) -> np.ndarray:
        """The last frame of every future ``(N, H, W, 3)`` uint8, decoding no other."""
        if "frames" in self.__dict__:
            return self.frames[:, -1]
        return self.world_model.decode(self.latents[:, :, -1:])[:, 0]

    @property
    def last_latents(self) -> torch.Tensor:
        """The latent of the last frame of every future ``(N, C, h, w)``."""
        return self.latents[:, :, -1]

    def disagreement(self) -> np.ndarray:
        """How far the samples of one future differ, frame by frame.

        The larger it is, the less the model knows what comes next.

        Returns:
            ``(T,)`` float32, at least 0: the root mean square difference of the samples' latents,
            which have about unit variance, from their mean.

        Raises:
            SfvgenError: where there are fewer than two samples, or the futures are of different
                actions.
        """
        require(len(self) > 1, "one future cannot disagree: imagine with num_samples of at least 2")
        require(
            self.actions is None or bool((self.actions == self.actions[:1]).all()),
            "disagreement compares samples of one action sequence, not candidates",
        )
        return disagreement(self.latents[None])[0].cpu().numpy()


def disagreement(samples: torch.Tensor) -> torch.Tensor:
    """Root mean square difference of samples from their mean.

    Args:
        samples: latents ``(N, S, C, T, h, w)``, S samples of each of N futures.

    Returns:
        ``(N, T)`` float32.
    """
    deviation = samples.float() - samples.float().mean(dim=1, keepdim=True)
    return deviation.square().mean(dim=(1, 2, 4, 5)).sqrt()


def decode_videos(world_model: VideoWorldModel, videos: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Decode videos of any length in one call.

    Args:
        world_model: the model that made them.
        videos: latents ``(C, T, h, w)``, of any T each.

    Returns:
        Frames ``(T, H, W, 3)`` uint8 of each.
    """
    # A frame is decoded by itself.
    latents = torch.cat([video.transpose(0, 1)[:, :, None] for video in videos])
    ends = np.cumsum([video.shape[1] for video in videos])
    return np.split(world_model.decode(latents)[:, 0], ends[:-1])
