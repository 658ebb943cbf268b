"""Capturing work on the GPU as CUDA graphs, which launch thousands of small kernels at once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils import _pytree as pytree

MAX_GRAPHS = 16
"""Graphs of a model that are kept; the one that was not used for longest goes first."""

Result = TypeVar("Result")


def run_aside(work: Callable[[], Result]) -> Result:
    """Run `work` on a stream of its own, as is needed before it can be captured.

    A first run compiles and tries algorithms, which a capture does not allow.
    """
    side_stream = _side_stream(torch.cuda.current_device())
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        result = work()
    torch.cuda.current_stream().wait_stream(side_stream)
    return result


class GraphPool:
    """Memory on the present device that graphs may share which run one after another.

    Attributes:
        handle: PyTorch's.
    """

    def __init__(self) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        # Once all graphs of a pool are gone, PyTorch takes no further ones into it.
        self._keeper = torch.cuda.CUDAGraph()
        run_aside(self._touch)
        with _capturing(self._keeper, self):
            self._touch()

    @staticmethod
    def _touch() -> None:
        torch.zeros(1, device="cuda")


class CapturedGraph(Generic[Result]):
    """A function of tensors of fixed shapes, captured as a CUDA graph on the present device.

    Args:
        function: Has run aside before with such arguments. It must not look at the values of
            tensors, nor draw random numbers.
        arguments: The function's, of which tensors may be deep in tuples, lists and dicts; all
            else stays what it is here.
        pool: Where the graph takes its memory from.
    """

    def __init__(
        self, function: Callable[..., Result], arguments: tuple[Any, ...], pool: GraphPool
    ) -> None:
        values, structure = pytree.tree_flatten(arguments)
        copies = [value.clone() if isinstance(value, Tensor) else value for value in values]
        self._inputs = _tensors(copies)
        own = pytree.tree_unflatten(copies, structure)
        self._graph = torch.cuda.CUDAGraph()
        with _capturing(self._graph, pool):
            self._output = function(*own)

    def replay(self, arguments: tuple[Any, ...]) -> Result:
        """What the function gives for tensors of the same shapes.

        Its tensors are the graph's own: to be used or copied before a graph of the same pool runs.
        """
        torch._foreach_copy_(self._inputs, _tensors(pytree.tree_leaves(arguments)))
        self._graph.replay()
        return self._output


class CapturedFunction(Generic[Result]):
    """Calls a function by a CUDA graph for each shape of its arguments that comes back.

    The first call of a shape runs the function aside, as a capture needs it; a shape that never
    comes back needs no graph.

    Attributes:
        pool: Where its graphs take their memory from.

    Args:
        function: As in `CapturedGraph`; its result's tensors are to be used as `replay` says.
        pool: Shared with graphs that never run at the same time; by default one of its own.
        max_graphs: Shapes that are kept; the one that was not used for longest goes first. None
            for all.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        pool: GraphPool | None = None,
        max_graphs: int | None = None,
    ) -> None:
        self.pool = GraphPool() if pool is None else pool
        self._function = function
        self._max_graphs = max_graphs
        # None for a shape that was seen once.
        self._graphs: OrderedDict[Hashable, CapturedGraph[Result] | None] = OrderedDict()

    def __call__(self, *arguments: Any, state: Hashable = None) -> Result:
        """`function(*arguments)` on the present device.

        Args:
            *arguments: Trees of tensors and hashable constants.
            state: What else the function depends on; another state has other graphs.
        """
        values, structure = pytree.tree_flatten(arguments)
        shapes = tuple(
            (value.shape, value.dtype) if isinstance(value, Tensor) else value for value in values
        )
        key = (str(structure), shapes, state)
        if key not in self._graphs:
            self._graphs[key] = None
            if self._max_graphs is not None and len(self._graphs) > self._max_graphs:
                self._graphs.popitem(last=False)
            return run_aside(lambda: self._function(*arguments))
        self._graphs.move_to_end(key)
        graph = self._graphs[key]
        if graph is None:
            graph = self._graphs[key] = CapturedGraph(self._function, arguments, self.pool)
        return graph.replay(arguments)


def module_state(module: nn.Module) -> Hashable:
    """Changes when a graph of the module has to be captured anew.

    Weights that are updated in place do not change it; new ones do, and adapters that are
    attached, taken off, or switched on or off. A layer's plain tensors count as weights: there a
    memory has what it learns.
    """
    state: list[Hashable] = []
    for layer in module.modules():
        tensors = (*layer._parameters.values(), *layer._buffers.values(), *vars(layer).values())
        state.extend(tensor.data_ptr() for tensor in tensors if isinstance(tensor, Tensor))
        if isinstance(layer, BaseTunerLayer):
            state.append((layer.disable_adapters, layer.merged, *layer.active_adapters))
    return tuple(state)


def _capturing(graph: torch.cuda.CUDAGraph, pool: GraphPool) -> AbstractContextManager[None]:
    return torch.cuda.graph(
        graph,
        pool=pool.handle,
        stream=_side_stream(torch.cuda.current_device()),
        capture_error_mode="thread_local",
    )


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One for all: the libraries of matrix products keep memory for each stream they work on."""
    return torch.cuda.Stream(device)


def _tensors(values: list[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]
