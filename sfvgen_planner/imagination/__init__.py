"""Gymnasium's face of the world model: environments that can imagine their own futures."""

from sfvgen_planner.imagination.result import Imagination
from sfvgen_planner.imagination.wrapper import ImaginationWrapper

__all__ = ["Imagination", "ImaginationWrapper"]
