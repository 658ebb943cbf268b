"""What training steps draw their batches with, and what such a draw carries from step to step."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from torch import Tensor

DrawBatch = Callable[[torch.Generator], tuple[Any, ...]]
"""Draws one process's batch; all its randomness comes from the generator."""


@runtime_checkable
class StatefulDraw(Protocol):
    """A `DrawBatch` whose batches depend on earlier steps too; checkpoints keep its state."""

    def __call__(self, generator: torch.Generator) -> tuple[Any, ...]:
        """One process's batch; all its randomness comes from the generator and the state."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What later batches depend on; names, shapes and types are the same on all processes."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave, on whatever device its tensors are.

        Raises:
            KeyError: It is not the state of such a draw.
        """
        ...


def gather_draws(draw_batch: DrawBatch, accelerator: Accelerator) -> dict[str, Tensor]:
    """The states of all processes' draws; all processes must call this together.

    Returns:
        On the main process its tensors by name, `(processes, ...)` on the host; none on the others
        and for a draw without a state.
    """
    gathered = {}
    if isinstance(draw_batch, StatefulDraw):
        for name, value in draw_batch.state().items():
            whole = accelerator.gather(value.to(accelerator.device)[None])
            if accelerator.is_main_process:
                # safetensors refuses tensors that share memory.
                gathered[name] = whole.to("cpu", copy=True)
    return gathered


def load_draws(
    draw_batch: DrawBatch, gathered: dict[str, Tensor], accelerator: Accelerator
) -> None:
    """Give a draw its process's part of what `gather_draws` gave.

    Draws of another number of processes have no part in it; they begin anew.
    """
    if not isinstance(draw_batch, StatefulDraw) or not gathered:
        return
    if all(len(value) == accelerator.num_processes for value in gathered.values()):
        own = accelerator.process_index
        draw_batch.load_state({name: value[own].clone() for name, value in gathered.items()})
