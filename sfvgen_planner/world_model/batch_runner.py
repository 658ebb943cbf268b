"""What a model computes of a batch of any size: in pieces, with many memories, or compiled."""

from collections.abc import Callable, Hashable
from functools import partial

import torch
from torch import Tensor, nn

from sfvgen_planner.errors import require
from sfvgen_planner.world_model.batching import MemoryCap, by_memory, in_order, run_in_pieces
from sfvgen_planner.world_model.fast_sampling import FastSampling


class BatchRunner:
    """Computes functions of batches in pieces that fit into memory; the one place that cares."""

    def __init__(self) -> None:
        self._memory_cap = MemoryCap()

    def run(
        self,
        kind: Hashable,
        module: nn.Module,
        function: Callable[..., Tensor],
        *tensors: Tensor | None,
        max_batch_size: int | None,
        num_memories: int = 1,
        compiled: FastSampling | None = None,
    ) -> Tensor:
        """`function(*tensors)`.

        Args:
            kind: What else than the tensors' shapes it depends on.
            module: Whose weights it uses.
            function: Its samples do not depend on each other.
            *tensors: Its arguments with the batch as first axis, or None.
            max_batch_size: Samples in one piece; None for as many as fit.
            num_memories: Fast weights in `module`, each for an equal share of the batch, in order.
            compiled: Runs `function` as a CUDA graph, where the device has any.

        Raises:
            SfvgenError: `max_batch_size` is below 1, or the memories' shares are not equal.
        """
        assert tensors[0] is not None
        size = max_batch_size
        require(size is None or size >= 1, f"max_batch_size must be at least 1, got {size}")
        if num_memories > 1:
            # A piece must hold as many samples of each memory, and in the memories' order.
            require(
                len(tensors[0]) % num_memories == 0,
                f"{num_memories} memories need a batch of as many samples for each, in order of "
                f"the memories, got {len(tensors[0])} samples",
            )
            whole = function

            def function(*parts: Tensor | None) -> Tensor:
                ordered = (None if part is None else in_order(part) for part in parts)
                return by_memory(whole(*ordered), num_memories)

            tensors = tuple(None if t is None else by_memory(t, num_memories) for t in tensors)
            size = None if size is None else max(1, size // num_memories)
        assert tensors[0] is not None
        shapes = tuple(None if t is None else (t.shape[1:], t.dtype) for t in tensors)
        work = (kind, shapes, tensors[0].device, torch.is_grad_enabled())
        if size is None:
            # What was captured once has its memory already.
            size = 0 if compiled is None else compiled.largest_captured(work)
            if size < len(tensors[0]):
                size = max(size, self._memory_cap.largest_batch(work, function, *tensors))
        if compiled is not None:
            size = 1 << (size.bit_length() - 1)
            function = partial(compiled.run, work, module, function)
        output = run_in_pieces(function, size, *tensors)
        return in_order(output) if num_memories > 1 else output
