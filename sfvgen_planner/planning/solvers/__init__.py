"""Solvers: they minimise a batched cost over action sequences and know nothing else."""

from sfvgen_planner.planning.solvers.cem import CEM, CEMConfig
from sfvgen_planner.planning.solvers.common import (
    BatchCostFunction,
    BatchSolver,
    CostFunction,
    Solution,
    Solver,
)
from sfvgen_planner.planning.solvers.gradient import Gradient, GradientConfig
from sfvgen_planner.planning.solvers.icem import ICEM, ICEMConfig
from sfvgen_planner.planning.solvers.mppi import MPPI, MPPIConfig
from sfvgen_planner.planning.solvers.random_shooting import RandomShooting, RandomShootingConfig

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "BatchCostFunction",
    "BatchSolver",
    "CEMConfig",
    "CostFunction",
    "Gradient",
    "GradientConfig",
    "ICEMConfig",
    "MPPIConfig",
    "RandomShooting",
    "RandomShootingConfig",
    "Solution",
    "Solver",
]
