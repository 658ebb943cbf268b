"""Collect episodes of any policy in any Gymnasium environment that has a camera."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sfvgen_planner.data.camera import camera_frame, proprioception
from sfvgen_planner.data.environment import action_box
from sfvgen_planner.data.episode import EpisodeSource
from sfvgen_planner.data.player import EpisodePlayer, EpisodeTask
from sfvgen_planner.data.recipe import DataRecipe, validated
from sfvgen_planner.data.rollout import checked_action, told_instruction
from sfvgen_planner.data.spec import StoreSpec
from sfvgen_planner.data.store import EpisodeStore, is_filled_folder, require_free_folder
from sfvgen_planner.workers import check_num_workers, play_all


def collect(
    env_id: str,
    policy: str,
    num_episodes: int,
    out: str | os.PathLike[str],
    seed: int = 0,
    num_workers: int = 1,
    env_kwargs: dict[str, Any] | None = None,
    policy_kwargs: dict[str, Any] | None = None,
    frame_skip: int = 1,
    image_size: int | None = None,
    progress: bool = True,
) -> EpisodeStore:
    """Collect episodes of one policy; see `collect_recipe`, which this calls.

    Args:
        env_id: Gymnasium id, also `module:id`.
        policy: Name of a registered policy, or `module:Class`.
        num_episodes: How many episodes of this policy the store shall hold.
        out: Folder of the store.
        seed: Episode i has seed `seed + i`.
        num_workers: Number of processes.
        env_kwargs: Arguments of `gymnasium.make` (JSON values).
        policy_kwargs: Arguments of the policy (JSON values).
        frame_skip: Environment steps per video frame.
        image_size: Height and width of the frames in pixels; None keeps the camera's.
        progress: Whether to show a progress bar.
    """
    source = {
        "env_id": env_id,
        "policy": policy,
        "episodes": num_episodes,
        "seed": seed,
        "env_kwargs": env_kwargs or {},
        "policy_kwargs": policy_kwargs or {},
    }
    values = {"sources": [source], "frame_skip": frame_skip, "image_size": image_size}
    return collect_recipe(validated(DataRecipe, values, "collect"), out, num_workers, progress)


def collect_recipe(
    recipe: DataRecipe,
    out: str | os.PathLike[str],
    num_workers: int = 1,
    progress: bool = True,
    player: EpisodePlayer | None = None,
) -> EpisodeStore:
    """Collect the episodes of a recipe that `out` does not hold yet.

    The episodes are the same, in the same order, for any number of workers. An interrupted call
    leaves a store of whole episodes; the same call goes on behind them. A recipe with more
    episodes or other policies adds to the store.

    Args:
        recipe: What to collect.
        out: Folder of the store, new or from an earlier call.
        num_workers: Number of processes. With more than one, a script needs the usual
            `if __name__ == "__main__":`.
        progress: Whether to show a progress bar.
        player: Plays the episodes in the recipe's environment; closed at the end. By default one
            that does nothing but play.

    Returns:
        The store, open for reading.

    Raises:
        SfvgenError: Before anything is written: an environment or policy that does not exist, has
            no camera or unbounded actions, a folder that cannot be written or holds something
            else. Later: a policy that gives wrong actions, a full disk.
    """
    out = Path(out)
    check_num_workers(num_workers)
    exists = is_filled_folder(out)
    if not exists:
        require_free_folder(out)
    player = player or EpisodePlayer(recipe.env_id, recipe.frame_skip, recipe.image_size)
    try:
        spec = _probe(recipe, player)
        with (
            EpisodeStore.open(out, mode="a") if exists else EpisodeStore.create(out, spec) as store
        ):
            store.spec.require_equal(spec, str(out))
            _play_missing(recipe, player, store, num_workers, progress)
    finally:
        player.close()
    return EpisodeStore.open(out)


def _probe(recipe: DataRecipe, player: EpisodePlayer) -> StoreSpec:
    """Try the first step of each source, and tell what its episodes will look like."""
    specs = []
    # Backwards, so that the environment which is needed first is the one left open.
    for source in reversed(recipe.sources):
        env, policy = player.prepare(source.episode_source())
        space = action_box(env)
        observation, info = env.reset(seed=source.seed)
        policy.reset(source.seed)
        checked_action(policy.act(observation, told_instruction(info)), space, 0)
        frame = camera_frame(env, observation, recipe.image_size)
        proprio = proprioception(observation)
        specs.append(
            StoreSpec(
                env_id=recipe.env_id,
                frame_skip=recipe.frame_skip,
                image_size=(frame.shape[0], frame.shape[1]),
                action_low=tuple(space.low.astype("float32").tolist()),
                action_high=tuple(space.high.astype("float32").tolist()),
                proprio_size=0 if proprio is None else len(proprio),
            )
        )
    for spec in specs[:-1]:
        specs[-1].require_equal(spec, "the first source of the recipe")
    return specs[-1]


def _play_missing(
    recipe: DataRecipe,
    player: EpisodePlayer,
    store: EpisodeStore,
    num_workers: int,
    progress: bool,
) -> None:
    tasks = [
        EpisodeTask(source.episode_source(), seed)
        for source in recipe.sources
        for seed in source.seeds
    ]
    done = {_key(entry.source, entry.seed) for entry in store.entries}
    missing = [task for task in tasks if _key(task.source, task.seed) not in done]
    num_frames, start = 0, time.perf_counter()
    with tqdm(
        total=len(tasks),
        initial=len(tasks) - len(missing),
        unit="episode",
        desc=str(store.path),
        disable=not progress,
    ) as bar:
        for episode in play_all(player, missing, num_workers):
            store.append(episode)
            num_frames += len(episode.frames)
            rate = num_frames / (time.perf_counter() - start)
            bar.set_postfix_str(f"{rate:.0f} frames/s", refresh=False)
            bar.update()


def _key(source: EpisodeSource, seed: int) -> str:
    return json.dumps([asdict(source), seed], sort_keys=True)
