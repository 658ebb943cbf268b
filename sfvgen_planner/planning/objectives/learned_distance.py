"""How many frames the temporal distance expects from the last imagined frame to a goal image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sfvgen_planner.errors import require
from sfvgen_planner.imagination import Imagination
from sfvgen_planner.planning.objectives.image_objective import ImageObjective

if TYPE_CHECKING:
    from sfvgen_planner.world_model.temporal_distance import TemporalDistance


class LearnedDistance(ImageObjective):
    """Expected number of frames from the last imagined frame to a goal image.

    Frames that look alike can be far apart, as those of an arm on either side of a block that it is
    to push. What counts here is how long the way was in the data.

    Args:
        temporal_distance: tells it; moved to the futures' device.
        image: ``(H, W, 3)`` uint8 of the model's image size.

    Raises:
        SfvgenError: where it is no such image, or there is no temporal distance.

    Example:
        >>> from functools import partial
        >>> from sfvgen_planner.planning import MPCPlanner
        >>> from sfvgen_planner.world_model.temporal_distance import TemporalDistance
        >>> planner = MPCPlanner(objective=partial(LearnedDistance, TemporalDistance()))
    """

    def __init__(self, temporal_distance: TemporalDistance, image: np.ndarray) -> None:
        super().__init__(image)
        require(
            temporal_distance is not None,
            "LearnedDistance needs a temporal distance, and this model has none; train one with "
            "temporal_distance in the recipe",
        )
        self.temporal_distance = temporal_distance

    def _cost(self, imagination: Imagination) -> torch.Tensor:
        last = imagination.last_latents.float()
        goals = self._encoded(imagination).expand_as(last)
        with torch.set_grad_enabled(imagination.latents.requires_grad):
            costs: torch.Tensor = self.temporal_distance.to(last.device)(last, goals)
        return costs
