"""A training step's forward and backward passes as CUDA graphs.

Fast learning inside a step, with gradients through it, is tens of thousands of small kernels; a
graph launches them all at once, so that the GPU does not wait for Python.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from sfvgen_planner.world_model.cuda_graphs import CapturedFunction


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
        self._captured = CapturedFunction(self._backward)

    def __call__(self, batch: tuple[Any, ...]) -> Tensor:
        """The loss of `batch`; its gradients are in the parameters' `grad` afterwards."""
        loss, gradients = self._captured(*batch)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss.clone()

    def _backward(self, *batch: Any) -> tuple[Tensor, list[Tensor | None]]:
        for parameter in self._parameters:
            parameter.grad = None
        with self._autocast():
            loss: Tensor = self._module(*batch)
        loss.backward()
        return loss.detach(), [parameter.grad for parameter in self._parameters]
