"""The improved cross-entropy method."""

from __future__ import annotations

from dataclasses import dataclass

from sfvgen_planner.planning.solvers.cem import CEM, CEMConfig


@dataclass(frozen=True)
class ICEMConfig(CEMConfig):
    """Settings of :class:`ICEM`: those of CEM with other defaults."""

    population_decay: float = 1.25
    noise_beta: float = 2.0
    return_best: bool = True


class ICEM(CEM):
    """iCEM (Pinneri et al., 2020, arXiv 2008.06389, Algorithm 1).

    CEM with smooth noise, kept elites, a population that decays, and the best candidate as the
    answer. Two details differ from the paper: the mean is a candidate of every iteration, not of
    the last alone, and elites are not shifted from one plan to the next, only the mean is.
    """

    def __init__(self, config: CEMConfig | None = None) -> None:
        super().__init__(config or ICEMConfig())
