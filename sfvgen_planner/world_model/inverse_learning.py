"""Training of the inverse dynamics model on pairs of consecutive frames (paper section 3.4)."""

from collections.abc import Callable

import torch
from sfvgen_policies.inverse_dynamics import InverseDynamics
from torch import Tensor, nn

from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.pipeline import VideoWorldModel


class InverseObjective(nn.Module):
    """Smooth L1 loss of the action between two frames."""

    def __init__(self, inverse_dynamics: InverseDynamics) -> None:
        super().__init__()
        self.inverse_dynamics = inverse_dynamics

    def forward(self, frames: Tensor, next_frames: Tensor, actions: Tensor) -> Tensor:
        """Loss of pairs `(batch, 3, H, W)` in [-1, 1] and actions `(batch, A)` in [-1, 1]."""
        predicted = self.inverse_dynamics(frames, next_frames).float()
        return nn.functional.smooth_l1_loss(predicted, actions, beta=0.1)


def pair_batches(
    table: FrameTable, model: VideoWorldModel, batch_size: int
) -> Callable[[torch.Generator], tuple[Tensor, Tensor, Tensor]]:
    """Random pairs of frames, half of the later ones as the frozen autoencoder renders them.

    At run time the earlier frame comes from the camera and the later one from the decoder.
    """
    starts = table.window_starts(2)
    vae = model.vae

    @torch.no_grad()
    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        device = table.frames.device
        picked = torch.randint(len(starts), (batch_size,), generator=generator, device=device)
        rows = starts[picked]
        frames, later = (
            table.frames[index].permute(0, 3, 1, 2).float() / 127.5 - 1
            for index in (rows, rows + 1)
        )
        rendered = vae.decode(vae.encode(later).latent_dist.mode()).sample.float().clamp(-1, 1)
        decoded = torch.rand(batch_size, 1, 1, 1, generator=generator, device=device) < 0.5
        noise = torch.randn(later.shape, generator=generator, device=device)
        return frames, torch.where(decoded, rendered, later) + 0.02 * noise, table.actions[rows]

    return draw
