"""Episodes in, training windows out."""

from sfvgen_planner.data.episode import Episode, EpisodeSource, Window
from sfvgen_planner.data.spec import StoreSpec
from sfvgen_planner.data.store import EpisodeStore

__all__ = ["Episode", "EpisodeSource", "EpisodeStore", "StoreSpec", "Window"]
