"""What a model is to know of the data that it is trained on."""

from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.world_model.pipeline import VideoWorldModel


def count_data(model: VideoWorldModel, store: EpisodeStore, known_episodes: int = 0) -> None:
    """Add a store's steps to those that a model was trained on, where these are known.

    Args:
        model: Counts them in its `data_steps`.
        store: Holds them.
        known_episodes: The store's first episodes, which the model has counted before.
    """
    known: int | None = model.config.data_steps
    if known is not None:
        model.register_to_config(data_steps=known + sum(store.num_steps[known_episodes:]))


def success_ends(store: EpisodeStore) -> bool:
    """Whether the environment has ended an episode of the store in success."""
    ended = (entry.success_array() for entry in store.entries if entry.terminated)
    return any(successes is not None and bool(successes[-1]) for successes in ended)
