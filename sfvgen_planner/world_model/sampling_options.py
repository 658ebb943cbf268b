"""How a video is sampled: steps, guidance and noise."""

from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sfvgen_planner.errors import SfvgenError


@dataclass(frozen=True)
class SamplingOptions:
    """Those of `VideoWorldModel.__call__` that every chunk shares.

    Attributes:
        num_inference_steps: Denoiser calls per chunk.
        guidance_scale: Of classifier-free guidance, at least 1.
        generator: Source of the noise; the global one by default, or one for each sample.
        common_noise: Every sample of the batch gets the same noise.

    Raises:
        SfvgenError: A number is out of its range.
    """

    num_inference_steps: int
    guidance_scale: float
    generator: torch.Generator | list[torch.Generator] | None
    common_noise: bool

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise SfvgenError(
                f"num_inference_steps must be at least 1, got {self.num_inference_steps}"
            )
        if not self.guidance_scale >= 1:
            raise SfvgenError(f"guidance_scale must be at least 1, got {self.guidance_scale}")

    def check_generators(self, batch: int) -> None:
        """Raise an `SfvgenError` unless a list of generators has one for each of the batch."""
        generator, common_noise = self.generator, self.common_noise
        if isinstance(generator, list) and (common_noise or len(generator) != batch):
            raise SfvgenError(
                f"{batch} pasts need {batch} generators and no common noise, or one generator for "
                f"all, got {len(generator)} and common_noise={common_noise}"
            )

    def draw_noise(self, context: Tensor, length: int) -> Tensor:
        """Noise `(batch, channels, length, h, w)` for the frames after `context`, on its device."""
        batch, channels, _, height, width = context.shape
        # Drawn on the CPU so that a seed gives the same video on every device.
        first = self.generator[0] if isinstance(self.generator, list) else self.generator
        noise = randn_tensor(
            (1 if self.common_noise else batch, channels, length, height, width),
            generator=self.generator,
            device=torch.device("cpu") if first is None else first.device,
        )
        return noise.to(context).expand(batch, -1, -1, -1, -1)
