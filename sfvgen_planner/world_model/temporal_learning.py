"""Training of the temporal distance on pairs of recorded frames."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.latent_noise import with_latent_noise
from sfvgen_planner.world_model.recipe import TemporalDistanceRecipe
from sfvgen_planner.world_model.temporal_distance import TemporalDistance

_SHARE_ELSEWHERE = 0.25
"""Of pairs from two episodes: enough for "further" to be known, too few to outweigh the rest."""


class DistanceBatch(NamedTuple):
    """Pairs of frames.

    Attributes:
        latents: `(batch, channels, h, w)`, of the earlier frames.
        goals: Of the later ones, or of frames of other episodes.
        num_frames: `(batch,)` whole numbers, how many frames later they are; the head's
            `max_frames + 1` where they are of other episodes.
    """

    latents: Tensor
    goals: Tensor
    num_frames: Tensor


class DistanceObjective(nn.Module):
    """Cross-entropy of the bin that the number of frames is in."""

    def __init__(self, head: TemporalDistance) -> None:
        super().__init__()
        self.head = head

    def forward(self, *fields: Tensor) -> Tensor:
        """Loss; `fields` are those of `DistanceBatch`."""
        batch = DistanceBatch(*fields)
        logits = self.head.logits(batch.latents, batch.goals)
        return nn.functional.cross_entropy(logits.float(), self.head.bin_of(batch.num_frames))


def distance_batches(
    table: FrameTable, head: TemporalDistance, recipe: TemporalDistanceRecipe
) -> Callable[[torch.Generator], DistanceBatch]:
    """Pairs of frames of an encoded table, with a little noise on the latents.

    The later frame is log-uniformly far away, up to the end of the episode: drawn uniformly, the
    near ones, on which the end of a plan depends, would drown. A share of the goals are frames of
    other episodes. Those may look near, but nothing in the data leads there.

    Raises:
        SfvgenError: See `check_pairs`.
    """
    max_frames = head.config.max_frames
    check_pairs(table, max_frames)
    device = table.frames.device
    num_rows = len(table.remaining)
    batch_size = recipe.optimisation.batch_size
    ends = torch.nonzero(table.remaining == 0).flatten()
    lengths = ends.diff(prepend=ends.new_tensor([-1]))
    lengths = lengths.repeat_interleave(lengths)

    def draw(generator: torch.Generator) -> DistanceBatch:
        def uniform() -> Tensor:
            return torch.rand(batch_size, generator=generator, device=device)

        rows = torch.randint(num_rows, (batch_size,), generator=generator, device=device)
        remaining = table.remaining[rows]
        # Rounding can take a random number just below 1 up to it.
        ahead = ((remaining + 2.0) ** uniform() - 1).long().clamp(max=remaining)
        first = rows + remaining + 1 - lengths[rows]
        others = num_rows - lengths[rows]
        elsewhere = (others * uniform()).long().clamp(max=others - 1)
        elsewhere = elsewhere + lengths[rows] * (elsewhere >= first)
        leaves = uniform() < _SHARE_ELSEWHERE
        goals = torch.where(leaves, elsewhere, rows + ahead)
        # To single precision first: autocast to bfloat16 refuses to stack float16.
        clean = torch.stack([table.frames[picked].float() for picked in (rows, goals)])
        latents, goal_latents = with_latent_noise(clean, recipe.latent_noise, generator)
        return DistanceBatch(
            latents=latents,
            goals=goal_latents,
            num_frames=torch.where(leaves, max_frames + 1, ahead),
        )

    return draw


def check_pairs(table: FrameTable, max_frames: int) -> None:
    """Refuse data that a temporal distance can't be learned from.

    Args:
        table: Frames or latents.
        max_frames: The most frames that are told apart from "further".

    Raises:
        SfvgenError: No episode is longer than that many frames, or there is only one episode.
    """
    longest = int(table.remaining.max())
    if longest < max_frames:
        raise SfvgenError(
            f"a temporal distance of up to {max_frames} frames needs an episode in which as many "
            f"follow the first, but the longest has {longest}; lower temporal_distance.max_frames "
            "in the recipe or collect longer episodes"
        )
    if int((table.remaining == 0).sum()) < 2:
        raise SfvgenError(
            "a temporal distance is learned from frames of different episodes too, and the data "
            "has only one; collect more episodes"
        )
