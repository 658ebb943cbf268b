"""Training of the success head on the moments at which instructions ended."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.recipe import SuccessHeadRecipe
from sfvgen_planner.world_model.success_head import SuccessHead

# The last frames of an instruction show it achieved, or as good as achieved: the object is where
# it was asked for while the hand draws back. Frames between those and the negatives are unclear.
_ACHIEVED_STEPS = 3
_UNCLEAR_STEPS = 7
# Of so many other instructions, the one with the most words in common is the negative.
_CANDIDATES = 4


class SuccessObjective(nn.Module):
    """Binary cross-entropy of frames and instructions."""

    def __init__(self, head: SuccessHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, latents: Tensor, token_ids: Tensor, achieved: Tensor) -> Tensor:
        """Loss of latents `(batch, channels, h, w)` and labels `(batch,)` of 0 and 1."""
        logits = self.head(latents, token_ids).float()
        return nn.functional.binary_cross_entropy_with_logits(logits, achieved)


def success_batches(
    table: FrameTable, model: VideoWorldModel, recipe: SuccessHeadRecipe
) -> Callable[[torch.Generator], tuple[Tensor, Tensor, Tensor]]:
    """Frames with instructions that they achieve (2 in 5) or do not (3 in 5).

    An instruction counts as achieved when it ended, so the data must come from an expert. Negatives
    are such a frame with another, similar instruction (2 in 5), and a much earlier frame with the
    same instruction (1 in 5).

    Raises:
        SfvgenError: Fewer than two different instructions ended in the data.
    """
    device = table.frames.device
    tokens = model.tokenize(table.instructions).to(device)
    ends, ids, lengths = _ended_instructions(table)
    if len(ids.unique()) < 2:
        raise SfvgenError(
            "a success head needs episodes in which at least two different instructions ended; "
            "collect some with an expert"
        )
    latents = _encode_rows(table, model, ends)
    back = (
        _UNCLEAR_STEPS
        + (
            torch.rand(len(ends), generator=torch.Generator().manual_seed(0)).to(device)
            * (lengths - _UNCLEAR_STEPS).clamp(min=1)
        ).long()
    )
    earlier = _encode_rows(table, model, ends - torch.minimum(back, lengths))
    present = torch.zeros(len(tokens), len(model.tokenizer), device=device)
    present.scatter_(1, tokens, 1.0)
    common = present @ present.T
    batch_size = recipe.optimisation.batch_size

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        def integers(high: int, *shape: int) -> Tensor:
            return torch.randint(high, shape, generator=generator, device=device)

        rows = integers(len(ends), batch_size)
        kind = integers(5, batch_size)
        told = ids[rows]
        others = ids[integers(len(ids), batch_size, _CANDIDATES)]
        likeness = common[told[:, None], others] - 1e6 * (others == told[:, None])
        other = others.gather(1, likeness.argmax(dim=1, keepdim=True))[:, 0]
        swapped = (kind < 2) & (other != told)
        before = kind == 2
        chosen = torch.where(before[:, None, None, None], earlier[rows], latents[rows]).float()
        noise = torch.randn(chosen.shape, generator=generator, device=device)
        level = 0.3 * torch.rand(batch_size, 1, 1, 1, generator=generator, device=device)
        achieved = (~swapped & ~before).float()
        return chosen + level * noise, tokens[torch.where(swapped, other, told)], achieved

    return draw


def _ended_instructions(table: FrameTable) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the frames at which an instruction ended, its index, and how long it was in force."""
    rows = torch.arange(len(table.remaining), device=table.remaining.device)
    is_last = table.instruction_ends() == rows + 1
    ended = rows[(table.remaining > 0) & is_last & (table.instruction_ids > 0)]
    return ended + 1, table.instruction_ids[ended], table.elapsed[ended] + 1


def _encode_rows(table: FrameTable, model: VideoWorldModel, rows: Tensor) -> Tensor:
    """Latents `(len(rows), channels, h, w)` in half precision."""
    batches = [model.encode(table.frames[part][None])[0] for part in rows.split(512)]
    return torch.cat([batch.transpose(0, 1).to(torch.float16) for batch in batches])
