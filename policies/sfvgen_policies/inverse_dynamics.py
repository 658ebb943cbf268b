"""Inverse dynamics: two frames to the action that leads from one to the other (paper 3.4)."""

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from numpy.typing import NDArray
from torch import Tensor, nn


class InverseDynamics(ModelMixin, ConfigMixin):
    """A small convolutional network on a pair of frames.

    Saved and loaded as any diffusers model: `save_pretrained`, `from_pretrained`.

    Args:
        image_size: Height and width of a frame in pixels, a multiple of 2 ** number of blocks.
        action_low: Lower bound of each action number, in the environment's units.
        action_high: Upper bound of each action number.
        block_out_channels: Channels of each block; each halves the resolution.
        hidden_size: Width of the layer before the action.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        action_low: tuple[float, ...] = (-1.0, -1.0, -1.0, -1.0),
        action_high: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
        block_out_channels: tuple[int, ...] = (32, 64, 128, 128),
        hidden_size: int = 256,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        # Both frames, their difference, and the two coordinates of the pixel.
        channels = 11
        for out_channels in block_out_channels:
            layers += [
                nn.Conv2d(channels, out_channels, kernel_size=3, padding=1),
                nn.GroupNorm(8, out_channels),
                nn.SiLU(),
                nn.Conv2d(out_channels, out_channels, kernel_size=4, stride=2, padding=1),
                nn.SiLU(),
            ]
            channels = out_channels
        side = image_size // 2 ** len(block_out_channels)
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * side * side, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, len(action_low)),
        )
        ramp = torch.linspace(-1, 1, image_size)
        grid = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij"))
        self.register_buffer("grid", grid, persistent=False)

    def forward(self, frames: Tensor, next_frames: Tensor) -> Tensor:
        """Frames `(batch, 3, H, W)` in [-1, 1], twice, to actions `(batch, A)` scaled to [-1, 1].

        The output is not clipped.
        """
        assert isinstance(self.grid, Tensor)
        grid = self.grid.to(frames.dtype)[None].expand(len(frames), -1, -1, -1)
        pair = torch.cat([frames, next_frames, next_frames - frames, grid], dim=1)
        actions: Tensor = self.head(self.features(pair))
        return actions

    @torch.no_grad()
    def predict(self, frames: NDArray[np.uint8], next_frames: NDArray[np.uint8]) -> np.ndarray:
        """The actions between pairs of frames.

        Args:
            frames: uint8 `(batch, H, W, 3)`.
            next_frames: uint8 `(batch, H, W, 3)`, one step later.

        Returns:
            `(batch, A)` float32 in the environment's units, within its bounds.

        Raises:
            ValueError: The frames are not uint8 or not of the model's size.
        """
        side = self.config.image_size
        for array in (frames, next_frames):
            if array.dtype != np.uint8 or array.shape != (len(frames), side, side, 3):
                raise ValueError(
                    f"inverse dynamics takes uint8 frames of shape (batch, {side}, {side}, 3), "
                    f"got {array.dtype} of shape {array.shape}"
                )
        images = [
            torch.from_numpy(np.ascontiguousarray(array)).to(self.device).permute(0, 3, 1, 2)
            for array in (frames, next_frames)
        ]
        scaled = [image.to(self.dtype) / 127.5 - 1 for image in images]
        normalised = self(*scaled).float().clamp(-1, 1).cpu().numpy()
        low = np.asarray(self.config.action_low, np.float32)
        high = np.asarray(self.config.action_high, np.float32)
        actions: np.ndarray = low + (normalised + 1) / 2 * (high - low)
        # Rounding may have left the bounds.
        return np.clip(actions, low, high).astype(np.float32)
