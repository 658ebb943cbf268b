"""Capturing work on the GPU as a CUDA graph."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def run_aside(work: Callable[[], Result]) -> Result:
    """Run `work` on a stream of its own, as is needed before it can be captured.

    A first run compiles and tries algorithms, which a capture does not allow.
    """
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        result = work()
    torch.cuda.current_stream().wait_stream(side_stream)
    return result


def capture(work: Callable[[], Result], pool: Any) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Capture `work`, which has run aside before.

    Args:
        work: Works on tensors that stay where they are, on the present device.
        pool: Handle of the memory that the graph takes its own from; graphs that run one after
            another may share it.

    Returns:
        The graph, and what `work` gave in it: tensors that each replay fills anew.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = work()
    return graph, result
