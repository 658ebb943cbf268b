"""A small head on the latents: how many frames lie between a frame and a goal?"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from sfvgen_planner.errors import require_count
from sfvgen_planner.world_model.latent_blocks import Reader, ResidualBlock, require_latents


class TemporalDistance(ModelMixin, ConfigMixin):
    """Convolutions over the latents of two frames, to how many frames lead from one to the other.

    A distance in time as in dynamical distance learning (Hartikainen et al., 2020, arXiv
    1907.08225), learned by classification as the reachability of Savinov et al. (2019, arXiv
    1810.02274) is. The classes are numbers of frames, each class about 1.4 times the one before,
    and a last one for what is further than `max_frames` or in another episode. It is the distance
    of the robot in the data: what took it a detour is as far as the detour is long. Latents are
    scaled as the world model's. Saved and loaded as any diffusers model: `save_pretrained`,
    `from_pretrained`.

    Args:
        latent_channels: Channels of the autoencoder's latents.
        latent_side: Height and width of the latents.
        hidden_size: Channels of the convolutions, a multiple of 8.
        num_blocks: Residual blocks.
        max_frames: The most frames that are told apart from "further"; at least 1.

    Raises:
        SfvgenError: `max_frames` is below 1.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        latent_side: int = 8,
        hidden_size: int = 96,
        num_blocks: int = 3,
        max_frames: int = 24,
    ) -> None:
        super().__init__()
        require_count("max_frames", max_frames)
        bounds = _bin_bounds(max_frames)
        # Whole numbers, which half precision leaves alone; the config has them, not the weights.
        self.register_buffer("bounds", torch.tensor(bounds), persistent=False)
        self.compare = nn.Conv2d(2 * latent_channels, hidden_size, kernel_size=3, padding=1)
        # How long a way takes depends on where in the picture it leads.
        self.places = nn.Parameter(torch.zeros(hidden_size, latent_side, latent_side))
        self.blocks = nn.ModuleList(
            ResidualBlock(hidden_size, reads_text=False) for _ in range(num_blocks)
        )
        self.read = Reader(hidden_size, len(bounds) - 1)

    def forward(self, latents: Tensor, goals: Tensor) -> Tensor:
        """Expected number of frames from frames to goals.

        Args:
            latents: `(batch, channels, h, w)`, of the frames to go from.
            goals: Likewise, of those to get to.

        Returns:
            `(batch,)`, steps of the model, from 0 to `2 * max_frames`, which stands for "further".
            It has the gradient of both arguments.

        Raises:
            SfvgenError: The latents are those of another model.
        """
        probabilities = self.logits(latents, goals).float().softmax(dim=1)
        return probabilities @ self.bin_centres()

    def logits(self, latents: Tensor, goals: Tensor) -> Tensor:
        """Log-odds `(batch, bins)` of the bins of `bin_of`; arguments as of `forward`."""
        shape = (self.config.latent_channels, *self.places.shape[1:])
        for one in (latents, goals):
            require_latents(one, shape, "temporal distance")
        features = self.compare(torch.cat([latents, goals - latents], dim=1)) + self.places
        for block in self.blocks:
            features = block(features)
        logits: Tensor = self.read(features)
        return logits

    def bin_of(self, num_frames: Tensor) -> Tensor:
        """The bin of each number of frames `(batch,)`; above `max_frames` it is the last one."""
        return torch.bucketize(num_frames, self.bounds[1:-1], right=True)

    def bin_centres(self) -> Tensor:
        """Frames `(bins,)` that each bin stands for: the mean of its numbers."""
        return (self.bounds[:-1] + self.bounds[1:] - 1).float() / 2


def _bin_bounds(max_frames: int) -> list[int]:
    """First numbers of frames of the bins, and the first one beyond the last bin."""
    steps = range(2 * max_frames.bit_length() + 1)
    starts = {0, *(number for k in steps if (number := round(2 ** (k / 2))) <= max_frames)}
    # The centre of the last bin is twice max_frames.
    return [*sorted(starts), max_frames + 1, 3 * max_frames]
