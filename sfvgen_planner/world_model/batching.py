"""Batches of any size on a device whose memory is limited."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

CPU_BATCH_SIZE = 64
"""Samples at once on a CPU, where larger batches are no faster."""

_USED_SHARE = 0.8
"""Of the free memory; the rest is for what a convolution may take beside its tensors."""


def run_in_pieces(
    function: Callable[..., Tensor], max_batch_size: int, *tensors: Tensor | None
) -> Tensor:
    """`function` of a batch, computed in pieces of at most `max_batch_size` samples.

    A piece that does not fit into memory after all is halved.

    Args:
        function: Its samples must not depend on each other.
        max_batch_size: Samples in one call.
        *tensors: Arguments with the batch as first axis; None is handed on.
    """
    assert tensors[0] is not None
    batch, size, start = len(tensors[0]), max_batch_size, 0
    outputs: list[Tensor] = []
    while start < batch:
        piece = [None if t is None else t[start : start + size] for t in tensors]
        try:
            outputs.append(function(*piece))
        except torch.OutOfMemoryError:
            size = min(size, batch - start)
            if size == 1:
                raise
            size = (size + 1) // 2
        else:
            start += size
            continue
        # Here, because the error above keeps the piece's tensors alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def by_memory(tensor: Tensor, num_memories: int) -> Tensor:
    """`(num_memories * n, ...)`, memory after memory, as `(n, num_memories, ...)`."""
    return tensor.unflatten(0, (num_memories, -1)).transpose(0, 1)


def in_order(tensor: Tensor) -> Tensor:
    """Back from `by_memory`."""
    return tensor.transpose(0, 1).flatten(0, 1)


class MemoryCap:
    """How many samples fit into a GPU's free memory, learnt from one sample of each kind of work.

    A GPU is asked at each call how much memory is free; other devices get `CPU_BATCH_SIZE`.
    """

    def __init__(self) -> None:
        self._bytes_per_sample: dict[Hashable, int] = {}

    def largest_batch(
        self, work: Hashable, function: Callable[..., Tensor], *tensors: Tensor | None
    ) -> int:
        """Samples that `function` may be given in one call, at least 1.

        Args:
            work: What the memory per sample depends on, the device included.
            function: Called once with a single sample for each new `work` on a GPU.
            *tensors: The arguments with the batch as first axis, or None.
        """
        assert tensors[0] is not None
        device = tensors[0].device
        if device.type != "cuda":
            return CPU_BATCH_SIZE
        if work not in self._bytes_per_sample:
            self._bytes_per_sample[work] = _peak_bytes(function, device, *tensors)
        bytes_per_sample = self._bytes_per_sample[work]
        fitting = _free_bytes(device) // bytes_per_sample
        if fitting < len(tensors[0]):
            # Memory that PyTorch keeps for later looks taken until it is given back.
            torch.cuda.empty_cache()
            fitting = _free_bytes(device) // bytes_per_sample
        return max(int(fitting), 1)


def _free_bytes(device: torch.device) -> int:
    return int(_USED_SHARE * torch.cuda.mem_get_info(device)[0])


def _peak_bytes(
    function: Callable[..., Tensor], device: torch.device, *tensors: Tensor | None
) -> int:
    """Memory that one sample takes; compiled code needs no more than the same code run eagerly."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.compiler.set_stance("force_eager"):
        function(*(None if tensor is None else tensor[:1] for tensor in tensors))
    torch.cuda.synchronize(device)
    return max(torch.cuda.max_memory_allocated(device) - before, 1)
