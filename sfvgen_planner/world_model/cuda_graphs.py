"""Capturing work on the GPU as a CUDA graph."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def capture(work: Callable[[], Result], pool: Any) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Run `work` twice, then capture it.

    Args:
        work: Works on tensors that stay where they are, on the present device.
        pool: Handle of the memory that the graph takes its own from; graphs that run one after
            another may share it.

    Returns:
        The graph, and what `work` gave in it: tensors that each replay fills anew.
    """
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        # The first run compiles and tries algorithms, which a capture does not allow.
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = work()
    return graph, result
