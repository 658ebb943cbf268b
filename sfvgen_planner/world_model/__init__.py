"""Slow weights: the video diffusion pipeline and its training."""

from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.pipeline_output import VideoWorldModelOutput
from sfvgen_planner.world_model.shipped import checkpoint_folder, load_world_model
from sfvgen_planner.world_model.tiny import tiny_world_model

__all__ = [
    "VideoWorldModel",
    "VideoWorldModelOutput",
    "checkpoint_folder",
    "load_world_model",
    "tiny_world_model",
]
