"""Condition planes: what the denoiser is told about each frame, as extra input channels.

Every plane has the height and width of the latents. In channel order:

- 1 plane marks the clean context frames (1) and the frames to denoise (0): the mask of the
  masked conditional diffusion (paper section 3.1);
- 1 plane says whether actions are given (1) or were dropped (0), so that a zero action and no
  action differ;
- A planes carry the action that leads into the frame, A more its sum since the last context
  frame; both are zero on context frames;
- `NUM_POSITION_PLANES` fixed planes tell the cell's place and the frame's time, because neither
  the convolutions nor the temporal attention of the UNet know where and when they are.
"""

import math

import torch
from torch import Tensor

_SPATIAL_FREQUENCIES = (1.0, 2.0)
_TEMPORAL_PERIODS = (16.0, 64.0)
# Keeps the sums of a usual chunk of 8 actions near [-1, 1].
_CUMULATIVE_SCALE = 8.0
NUM_POSITION_PLANES = 4 * len(_SPATIAL_FREQUENCIES) + 2 * len(_TEMPORAL_PERIODS)


def num_condition_planes(action_size: int) -> int:
    """Number of planes `condition_planes` returns for actions of `action_size` numbers."""
    return 2 + 2 * action_size + NUM_POSITION_PLANES


def position_planes(
    num_frames: int, num_past: int, height: int, width: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Fourier features of row, column and time, `(NUM_POSITION_PLANES, frames, height, width)`.

    Rows and columns run over [0, 1]; time counts frames from the first generated one.
    """
    rows = (torch.arange(height, device=device) + 0.5) / height
    columns = (torch.arange(width, device=device) + 0.5) / width
    times = torch.arange(num_frames, device=device, dtype=torch.float32) - num_past
    planes = []
    for frequency in _SPATIAL_FREQUENCIES:
        for wave in (torch.sin, torch.cos):
            planes.append(wave(math.pi * frequency * rows)[None, :, None])
            planes.append(wave(math.pi * frequency * columns)[None, None, :])
    for period in _TEMPORAL_PERIODS:
        for wave in (torch.sin, torch.cos):
            planes.append(wave(2 * math.pi * times / period)[:, None, None])
    return torch.stack([plane.expand(num_frames, height, width) for plane in planes])


def condition_planes(
    num_past: int,
    actions: Tensor,
    actions_given: Tensor,
    context_given: Tensor,
    height: int,
    width: int,
) -> Tensor:
    """All planes for a batch of windows of `num_past` context frames and T frames to denoise.

    Args:
        num_past: Number of context frames f_p at the start of the window.
        actions: `(batch, T, A)` in [-1, 1]; entry `k` leads into the `k`-th frame to denoise.
        actions_given: `(batch,)`, 1 where the actions count, 0 where they are dropped.
        context_given: `(batch,)`, 1 where the context frames are clean, 0 where the whole
            window is noised (fast learning, paper section 3.2).
        height: Rows of the latents.
        width: Columns of the latents.

    Returns:
        `(batch, num_condition_planes(A), num_past + T, height, width)`.
    """
    batch, num_future, action_size = actions.shape
    num_frames = num_past + num_future
    per_frame = actions.new_zeros(batch, num_frames, 2 + 2 * action_size)
    per_frame[:, :num_past, 0] = context_given[:, None]
    per_frame[:, :, 1] = actions_given[:, None]
    steps = actions * actions_given[:, None, None]
    per_frame[:, num_past:, 2 : 2 + action_size] = steps
    per_frame[:, num_past:, 2 + action_size :] = steps.cumsum(dim=1) / _CUMULATIVE_SCALE
    told = per_frame.permute(0, 2, 1)[..., None, None].expand(-1, -1, -1, height, width)
    place = position_planes(num_frames, num_past, height, width, device=actions.device)
    return torch.cat([told, place.to(told.dtype)[None].expand(batch, -1, -1, -1, -1)], dim=1)
