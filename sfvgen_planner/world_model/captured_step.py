"""A training step's forward and backward passes as CUDA graphs.

Fast learning inside a step, with gradients through it, is tens of thousands of small kernels; a
graph launches them all at once, so that the GPU does not wait for Python.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sfvgen_planner.world_model.cuda_graphs import capture, run_aside


class CapturedStep:
    """Computes a module's loss and gradients, by a graph for each shape of batch that comes back.

    Args:
        module: Called as `module(*batch)`; returns the scalar loss. It must not look at the values
            of tensors, nor draw random numbers.
        parameters: Those that get a gradient.
        autocast: Makes the context that the forward pass runs in.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Sequence[nn.Parameter],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._module = module
        self._parameters = list(parameters)
        self._autocast = autocast
        # One for all: graphs run one after another.
        self._pool = torch.cuda.graph_pool_handle()
        self._known: set[Hashable] = set()
        self._steps: dict[Hashable, _Step] = {}

    def __call__(self, batch: tuple[Any, ...]) -> Tensor:
        """The loss of `batch`; its gradients are in the parameters' `grad` afterwards."""
        values, structure = pytree.tree_flatten(batch)
        shapes = tuple(
            (value.shape, value.dtype) if isinstance(value, Tensor) else value for value in values
        )
        key = (str(structure), shapes)
        if key not in self._known:
            # A capture needs a run before it, and a shape that never comes back needs no graph.
            self._known.add(key)
            return run_aside(lambda: self._backward(batch))
        if key not in self._steps:
            self._steps[key] = _Step(
                self._backward, self._parameters, values, structure, self._pool
            )
        return self._steps[key].replay(values)

    def _backward(self, batch: tuple[Any, ...]) -> Tensor:
        for parameter in self._parameters:
            parameter.grad = None
        with self._autocast():
            loss: Tensor = self._module(*batch)
        loss.backward()
        return loss.detach()


class _Step:
    """The graph of one shape of batch."""

    def __init__(
        self,
        backward: Callable[[tuple[Any, ...]], Tensor],
        parameters: Sequence[nn.Parameter],
        values: Sequence[Any],
        structure: pytree.TreeSpec,
        pool: Any,
    ) -> None:
        self._parameters = parameters
        copies = [value.clone() if isinstance(value, Tensor) else value for value in values]
        self._inputs = [value for value in copies if isinstance(value, Tensor)]
        batch = pytree.tree_unflatten(copies, structure)
        self._graph, self._loss = capture(lambda: backward(batch), pool)
        self._gradients = [parameter.grad for parameter in parameters]

    def replay(self, values: Sequence[Any]) -> Tensor:
        given = [value for value in values if isinstance(value, Tensor)]
        torch._foreach_copy_(self._inputs, given)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._loss.clone()
