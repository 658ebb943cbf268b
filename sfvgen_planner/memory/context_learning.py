"""Slow weights that know how to use other contexts than the last frames, without any memory."""

import torch
from torch import Tensor, nn

from sfvgen_planner.memory.contexts import Context
from sfvgen_planner.memory.slow_fast import LoopBatches
from sfvgen_planner.world_model import VideoWorldModel
from sfvgen_planner.world_model.slow_learning import SlowBatch, SlowObjective, mean_error


class ContextObjective(nn.Module):
    """Eq. 2's loss of the windows that memories are judged by elsewhere, and of ordinary ones.

    Args:
        model: The slow weights.
    """

    def __init__(self, model: VideoWorldModel) -> None:
        super().__init__()
        self.slow = SlowObjective(model)

    def forward(self, judged: SlowBatch, slow: SlowBatch | None) -> Tensor:
        """Mean squared error over all samples."""
        batches = filter(None, (judged, slow))
        return mean_error(*map(self.slow.errors, batches))


class ContextBatches:
    """Draws the windows of the loop, each with a context of its episode.

    Args:
        batches: Draws the windows.
        context: Their context.
    """

    def __init__(self, batches: LoopBatches, context: Context) -> None:
        self._batches = batches
        self._context = context

    def __call__(self, generator: torch.Generator) -> tuple[SlowBatch, SlowBatch | None]:
        """One step's batch; all of its windows come after as many whole chunks."""
        num_chunks = self._batches.draw_horizon(generator)
        first, mix = self._batches.choose(num_chunks, generator)
        judged = self._batches.judged(first, mix, generator, self._context, num_chunks)
        return judged, self._batches.slow(generator)
