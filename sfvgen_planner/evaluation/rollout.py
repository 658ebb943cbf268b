"""Any policy in any environment over a list of seeds: the one loop of every evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sfvgen_policies import Policy
from tqdm import tqdm

from sfvgen_planner.data.environment import Environment
from sfvgen_planner.data.episode import Episode, EpisodeSource
from sfvgen_planner.data.rollout import record_episode
from sfvgen_planner.workers import Player, Result, Task, play_all


def play(
    env: Environment, policy: Policy, seeds: Sequence[int], description: str = ""
) -> Iterator[Episode]:
    """Play one episode per seed, with a progress bar that shows the share of successes.

    Args:
        env: what the policy acts in; an ``ImaginationWrapper`` where the policy plans.
        policy: expert, random, planner or learned.
        seeds: of ``env.reset`` and ``policy.reset``.
        description: of the progress bar.
    """
    num_successes = 0
    with tqdm(seeds, desc=description, unit="episode", dynamic_ncols=True) as progress:
        for count, seed in enumerate(progress, start=1):
            episode = record_episode(env, policy, seed, EpisodeSource())
            num_successes += succeeded(episode)
            progress.set_postfix_str(f"{num_successes}/{count} succeeded", refresh=False)
            yield episode


def play_spread(
    player: Player[Task, Result], tasks: Sequence[Task], num_workers: int, description: str
) -> list[Result]:
    """What comes of all tasks, played in several processes, with a progress bar."""
    results = play_all(player, tasks, num_workers)
    total = len(tasks)
    return list(tqdm(results, description, total, unit="episode", dynamic_ncols=True))


def succeeded(episode: Episode) -> bool:
    """Whether the environment says so in its last ``info``: ``is_success``, or else ``success``."""
    return bool(episode.info.get("is_success", episode.info.get("success", False)))
