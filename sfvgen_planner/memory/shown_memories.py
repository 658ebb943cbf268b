"""What a model sees of the memories that imagine with it."""

from collections.abc import Sequence

import torch

from sfvgen_planner.memory.adapter import Adapters, FastWeights
from sfvgen_planner.world_model import VideoWorldModel


class ShownMemories:
    """Places copies of memories, in the model's precision.

    They stay where they are, because a captured CUDA graph reads them there.

    Args:
        world_model: The model.
        adapters: Its adapters.
        fast: All memories, tensors `(memories, ...)`.
    """

    def __init__(self, world_model: VideoWorldModel, adapters: Adapters, fast: FastWeights) -> None:
        self._adapters = adapters
        unet = world_model.unet
        self._copies: FastWeights = {
            name: torch.zeros_like(value, dtype=unet.dtype) for name, value in fast.items()
        }
        (num_memories,) = {len(value) for value in fast.values()}
        self._written = torch.zeros(num_memories, dtype=torch.long, device=unet.device)

    def show(self, fast: FastWeights, memories: Sequence[int], num_writes: Sequence[int]) -> None:
        """Let the model see some of the memories; those that have written nothing hold nothing.

        Args:
            fast: All memories as they are now.
            memories: Which ones.
            num_writes: Chunks that each of those has written.
        """
        written = self._written[: len(memories)]
        written.copy_(torch.tensor(num_writes))
        is_written, rows = written > 0, torch.tensor(memories, device=written.device)
        # The first rows of the copies, so that a captured graph finds as many there again.
        shown = {name: value[: len(memories)] for name, value in self._copies.items()}
        for name, value in fast.items():
            mask = is_written.reshape(-1, *([1] * (value.dim() - 1)))
            torch.mul(value[rows], mask, out=shown[name])
        self._adapters.place(shown, written)
