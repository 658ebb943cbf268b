"""Episodes in, training windows out."""

from sfvgen_planner.data.camera import camera_frame, proprioception
from sfvgen_planner.data.collect import collect, collect_recipe
from sfvgen_planner.data.environment import make_env
from sfvgen_planner.data.episode import Episode, EpisodeSource, Window
from sfvgen_planner.data.frame_skip import FrameSkip
from sfvgen_planner.data.recipe import DataRecipe, DataSource
from sfvgen_planner.data.spec import StoreSpec
from sfvgen_planner.data.store import EpisodeStore
from sfvgen_planner.data.windows import EpisodeArrays, WindowSampler, load_all

__all__ = [
    "DataRecipe",
    "DataSource",
    "Episode",
    "EpisodeArrays",
    "EpisodeSource",
    "EpisodeStore",
    "FrameSkip",
    "StoreSpec",
    "Window",
    "WindowSampler",
    "camera_frame",
    "collect",
    "collect_recipe",
    "load_all",
    "make_env",
    "proprioception",
]
