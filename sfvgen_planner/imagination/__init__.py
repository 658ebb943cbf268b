"""Gymnasium's face of the world model: environments that imagine their futures.

Importing it registers ``sfvgen/Imagined-v0``; without an import, name it in the id:
``gymnasium.make("sfvgen_planner.imagination:sfvgen/Imagined-v0")``.
"""

import gymnasium as gym

from sfvgen_planner.imagination.batch import imagine_batch, step_batch
from sfvgen_planner.imagination.encoded_observation import ObservationEncoder
from sfvgen_planner.imagination.env import WorldModelEnv
from sfvgen_planner.imagination.result import Imagination, decode_videos
from sfvgen_planner.imagination.starts import EnvStarts, Start, Starts, StoreStarts
from sfvgen_planner.imagination.vector_env import WorldModelVectorEnv
from sfvgen_planner.imagination.wrapper import ImaginationWrapper

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

if "sfvgen/Imagined-v0" not in gym.registry:
    gym.register(
        id="sfvgen/Imagined-v0",
        entry_point="sfvgen_planner.imagination.registered:ImaginedEnv",
        vector_entry_point="sfvgen_planner.imagination.registered:ImaginedVectorEnv",
    )
