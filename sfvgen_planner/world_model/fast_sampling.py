"""Sampling through compiled code and, on a GPU, CUDA graphs.

A chunk is thousands of small kernels. Compiling fuses many of them; a CUDA graph launches all of
a chunk's at once, so that the GPU does not wait for Python.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sfvgen_planner.world_model.cuda_graphs import (
    MAX_GRAPHS,
    CapturedGraph,
    GraphPool,
    module_state,
    run_aside,
)

MAX_TEXTS = 1024
"""Instructions whose hidden states are kept."""

# Each batch size and window is compiled by itself, which is more often than PyTorch expects.
_RECOMPILE_LIMIT = 256


class FastSampling:
    """The compiled parts of a world model, with their CUDA graphs and encoded instructions.

    Attributes:
        denoise: `VideoWorldModel.denoise`, compiled.
        decode: Latents to pixels on the device, compiled.
    """

    def __init__(
        self,
        denoise: Callable[..., Tensor],
        decode: Callable[..., Tensor],
        text_encoder: nn.Module,
        options: dict[str, Any],
    ) -> None:
        self.denoise = torch.compile(denoise, dynamic=False, **options)
        self.decode = torch.compile(decode, dynamic=False, **options)
        self._text_encoder = text_encoder
        self._graphs: OrderedDict[Hashable, CapturedGraph[Tensor]] = OrderedDict()
        self._largest: dict[Hashable, int] = {}
        self._texts: dict[Hashable, Tensor] = {}

    @cached_property
    def pool(self) -> GraphPool:
        """The memory that all graphs of the model share, because they run in turn."""
        return GraphPool()

    def largest_captured(self, work: Hashable) -> int:
        """The largest batch that a graph of `work` was captured for, 0 for none."""
        return self._largest.get(work, 0)

    def run(
        self,
        work: Hashable,
        module: nn.Module,
        function: Callable[..., Tensor],
        *tensors: Tensor | None,
    ) -> Tensor:
        """`function(*tensors)`, of a batch filled up to a power of two, so that few are compiled.

        Args:
            work: What `function` depends on, the tensors' shapes without the batch included.
            module: Whose weights it uses.
            function: Gives its output for each sample of the batch by itself, on the tensors'
                device and without a look at their values.
            *tensors: Its arguments with the batch as first axis, or None.
        """
        first = tensors[0]
        assert first is not None
        size = 1 << (len(first) - 1).bit_length()
        filled = [None if tensor is None else _fill(tensor, size) for tensor in tensors]
        many = torch._dynamo.config.patch(recompile_limit=_RECOMPILE_LIMIT)
        if first.device.type != "cuda":
            with many:
                return function(*filled)[: len(first)]
        key = (work, size, module_state(module))
        if key not in self._graphs:
            with many:
                self._graphs[key] = self._capture(function, filled, first.device)
            self._largest[work] = max(size, self.largest_captured(work))
            while len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key].replay(tuple(filled))[: len(first)].clone()

    def encode_texts(self, texts: list[str], encode: Callable[[list[str]], Tensor]) -> Tensor:
        """`encode(texts)`, where each text is encoded once as long as the weights stay."""
        weights = tuple((p.data_ptr(), p._version) for p in self._text_encoder.parameters())
        new = [text for text in texts if (weights, text) not in self._texts]
        if new:
            if len(self._texts) + len(new) > MAX_TEXTS:
                self._texts.clear()
                new = texts
            self._texts.update(
                ((weights, text), state) for text, state in zip(new, encode(new), strict=True)
            )
        return torch.stack([self._texts[weights, text] for text in texts])

    def _capture(
        self, function: Callable[..., Tensor], tensors: list[Tensor | None], device: torch.device
    ) -> CapturedGraph[Tensor]:
        with torch.cuda.device(device):
            run_aside(lambda: function(*tensors))
            return CapturedGraph(function, tuple(tensors), self.pool)


def _fill(tensor: Tensor, size: int) -> Tensor:
    """A contiguous batch of `size` samples; the last one is repeated."""
    missing = size - len(tensor)
    if missing == 0:
        return tensor.contiguous()
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])
