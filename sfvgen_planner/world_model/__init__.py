"""Slow weights: the video diffusion pipeline and its training."""

from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.pipeline_output import VideoWorldModelOutput
from sfvgen_planner.world_model.shipped import load_world_model, shipped_folder
from sfvgen_planner.world_model.tiny import tiny_world_model

__all__ = [
    "VideoWorldModel",
    "VideoWorldModelOutput",
    "load_world_model",
    "shipped_folder",
    "tiny_world_model",
]
