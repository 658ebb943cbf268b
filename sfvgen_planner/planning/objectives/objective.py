"""What an objective is."""

from __future__ import annotations

from typing import Protocol

import torch

from sfvgen_planner.imagination import Imagination


class Objective(Protocol):
    """Costs ``(N,)`` of N imagined futures; lower is better."""

    def __call__(self, imagination: Imagination) -> torch.Tensor:
        """Cost of each future."""
