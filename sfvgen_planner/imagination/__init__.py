"""Gymnasium's face of the world model: environments that imagine their futures."""

from sfvgen_planner.imagination.encoded_observation import ObservationEncoder
from sfvgen_planner.imagination.env import WorldModelEnv
from sfvgen_planner.imagination.result import Imagination, decode_videos
from sfvgen_planner.imagination.starts import EnvStarts, Start, Starts, StoreStarts
from sfvgen_planner.imagination.vector_env import WorldModelVectorEnv
from sfvgen_planner.imagination.wrapper import ImaginationWrapper, imagine_batch, step_batch

__all__ = [
    "EnvStarts",
    "Imagination",
    "ImaginationWrapper",
    "ObservationEncoder",
    "Start",
    "Starts",
    "StoreStarts",
    "WorldModelEnv",
    "WorldModelVectorEnv",
    "decode_videos",
    "imagine_batch",
    "step_batch",
]
