"""What the video world model's pipeline returns."""

from dataclasses import dataclass

import numpy as np
from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class VideoWorldModelOutput(BaseOutput):
    """What `VideoWorldModel` imagined.

    Attributes:
        frames: uint8 `(batch, num_frames, height, width, 3)`, or None with
            `output_type="latent"`.
        latents: float32 `(batch, channels, num_frames, h, w)` on the model's device, scaled as
            `VideoWorldModel.encode` does.
    """

    frames: np.ndarray | None
    latents: Tensor
