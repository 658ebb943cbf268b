"""Any policy in any environment over a list of seeds: the one loop of every evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sfvgen_policies import Policy
from tqdm import tqdm

from sfvgen_planner.data.environment import Environment
from sfvgen_planner.data.episode import Episode, EpisodeSource
from sfvgen_planner.data.rollout import EpisodeRecorder, record_episode
from sfvgen_planner.errors import require_count
from sfvgen_planner.imagination import step_batch
from sfvgen_planner.planning import PlanningPolicy, act_batch
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


def play_side_by_side(policies: Sequence[PlanningPolicy], seeds: Sequence[int]) -> list[Episode]:
    """Play one episode per seed, all at a time, in calls of the world model for all of them.

    Each comes out as it does when it is played alone, as far as rounding allows. An environment
    whose episode has ended rests until the last one has.

    Args:
        policies: at least as many as seeds, each with an environment of its own; see
            :func:`~sfvgen_planner.planning.act_batch`.
        seeds: of the episodes, the policies' plans included.

    Returns:
        The episodes in the seeds' order.
    """
    players = []
    for policy, seed in zip(policies, seeds, strict=False):
        own = policy.imagination
        size = own.world_model.config.image_size
        players.append((policy, EpisodeRecorder(own, seed, EpisodeSource(), size)))
        policy.reset(seed)
    while playing := [(policy, recorder) for policy, recorder in players if not recorder.is_over]:
        recorders = [recorder for _, recorder in playing]
        acted = act_batch(
            [policy for policy, _ in playing], [recorder.instruction for recorder in recorders]
        )
        actions = [own.checked(action) for own, action in zip(recorders, acted, strict=True)]
        exact = [own.exact(action) for own, action in zip(recorders, actions, strict=True)]
        results = step_batch([policy.imagination for policy, _ in playing], exact)
        for recorder, action, result in zip(recorders, actions, results, strict=True):
            recorder.add(action, result)
    return [recorder.episode(policy) for policy, recorder in players]


def play_spread(
    player: Player[Sequence[Task], Sequence[Result]],
    tasks: Sequence[Task],
    num_workers: int,
    description: str,
    num_envs: int = 1,
) -> list[Result]:
    """What comes of all tasks, played in several processes, with a progress bar.

    Args:
        player: plays up to ``num_envs`` tasks at a time and tells what comes of each.
        tasks: an episode each.
        num_workers: processes.
        description: of the progress bar.
        num_envs: tasks that are handed over together.

    Raises:
        SfvgenError: a number is below 1, or an episode failed.
    """
    require_count("num_envs", num_envs)
    groups = [tasks[start : start + num_envs] for start in range(0, len(tasks), num_envs)]
    results: list[Result] = []
    with tqdm(total=len(tasks), desc=description, unit="episode", dynamic_ncols=True) as progress:
        for group in play_all(player, groups, num_workers):
            results += group
            progress.update(len(group))
    return results


def succeeded(episode: Episode) -> bool:
    """Whether the environment says so in its last ``info``: ``is_success``, or else ``success``."""
    return bool(episode.info.get("is_success", episode.info.get("success", False)))
