"""How a video is sampled: steps, guidance and noise."""

import math
from dataclasses import dataclass
from numbers import Real

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sfvgen_planner.errors import SfvgenError, require_count


@dataclass(frozen=True)
class SamplingOptions:
    """Those of `VideoWorldModel.__call__` that every chunk shares.

    Attributes:
        num_inference_steps: Denoiser calls per chunk.
        guidance_scale: Of classifier-free guidance, finite and at least 1.
        generator: Source of the noise; the global one by default, or one for each
            `samples_per_generator` samples, in order.
        samples_per_generator: Samples that share one of a list of generators.
        common_noise: Every sample of a generator gets the same noise.

    Raises:
        SfvgenError: A number is out of its range.
    """

    num_inference_steps: int
    guidance_scale: float
    generator: torch.Generator | list[torch.Generator] | None
    common_noise: bool
    samples_per_generator: int = 1

    def __post_init__(self) -> None:
        require_count("num_inference_steps", self.num_inference_steps)
        if not (isinstance(self.guidance_scale, Real) and 1 <= self.guidance_scale < math.inf):
            raise SfvgenError(
                f"guidance_scale must be finite and at least 1, got {self.guidance_scale!r}"
            )

    def check_generators(self, batch: int) -> None:
        """Raise an `SfvgenError` unless a list of generators fits a batch of this size."""
        generator, share = self.generator, self.samples_per_generator
        every = generator if isinstance(generator, list) else [generator]
        if generator is not None and not all(isinstance(g, torch.Generator) for g in every):
            raise SfvgenError(
                "generator must be a torch.Generator, such as torch.Generator().manual_seed(0), or "
                f"a list of them, got {generator!r}"
            )
        if not isinstance(generator, list):
            return
        if share < 1 or len(generator) * share != batch or (self.common_noise and share == 1):
            raise SfvgenError(
                "a list of generators needs as many pasts as generators times "
                "samples_per_generator, and more than one of these for common noise, got "
                f"{len(generator)} generators, samples_per_generator={share}, {batch} pasts and "
                f"common_noise={self.common_noise}"
            )

    def draw_noise(self, context: Tensor, length: int) -> Tensor:
        """Noise `(batch, channels, length, h, w)` for the frames after `context`, on its device."""
        batch, channels, _, height, width = context.shape
        given = self.generator
        generators = given if isinstance(given, list) else [given]
        share = batch // len(generators)
        shape = (1 if self.common_noise else share, channels, length, height, width)
        # Drawn on the CPU so that a seed gives the same video on every device.
        noises = [
            randn_tensor(
                shape,
                generator=generator,
                device=torch.device("cpu") if generator is None else generator.device,
            )
            for generator in generators
        ]
        noise = torch.stack(noises).to(context)
        return noise.expand(-1, share, -1, -1, -1, -1).flatten(0, 1)
