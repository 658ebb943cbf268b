"""What actions cost by themselves, whatever they lead to."""

from __future__ import annotations

import numpy as np
import torch

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.imagination import Imagination
from sfvgen_planner.world_model.actions import normalise_actions


class ActionMagnitude:
    """Mean square of the actions, in units of half their range, from its middle or from others.

    Args:
        reference: actions ``(T, A)`` in env units to keep near to, as long as the futures, such as
            those that a video planner read off its video; the middle of the range by default.
    """

    def __init__(self, reference: np.ndarray | None = None) -> None:
        self.reference = reference

    def __call__(self, imagination: Imagination) -> torch.Tensor:
        """Cost of each future.

        Raises:
            SfvgenError: the futures have no actions, or the reference does not fit them.
        """
        actions = _in_half_ranges(imagination, type(self).__name__)
        if self.reference is not None:
            shape = tuple(np.shape(self.reference))
            require(
                shape == tuple(actions.shape[1:]),
                f"ActionMagnitude: the reference must have the shape {tuple(actions.shape[1:])} "
                f"of the futures' actions, got {shape}",
            )
            reference = torch.as_tensor(np.asarray(self.reference), device=actions.device)
            actions = actions - _scaled(imagination, reference)
        return actions.square().mean(dim=(1, 2))


class ActionChange:
    """Mean square of what actions change by from step to step, in units of half their range.

    A future of one step costs nothing.
    """

    def __call__(self, imagination: Imagination) -> torch.Tensor:
        """Cost of each future.

        Raises:
            SfvgenError: the futures have no actions.
        """
        actions = _in_half_ranges(imagination, type(self).__name__)
        changes = actions.diff(dim=1).square()
        return changes.sum(dim=(1, 2)) / max(1, changes[0].numel())


def _in_half_ranges(imagination: Imagination, name: str) -> torch.Tensor:
    """The futures' actions ``(N, T, A)`` in [-1, 1], on the device of their latents."""
    if imagination.actions is None:
        raise SfvgenError(
            f"{name}: these futures were imagined without actions; use it in a search for actions"
        )
    return _scaled(imagination, imagination.actions.to(imagination.latents.device))


def _scaled(imagination: Imagination, actions: torch.Tensor) -> torch.Tensor:
    config = imagination.world_model.config
    return normalise_actions(actions, config.action_low, config.action_high)
