"""Episodes in which a cube is asked back a given number of chunks after it left its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from sfvgen_policies import Policy, make_policy
from tqdm import tqdm

from sfvgen_planner.data.environment import Environment, make_env
from sfvgen_planner.data.episode import Episode, EpisodeSource
from sfvgen_planner.data.rollout import record_episode
from sfvgen_planner.errors import require
from sfvgen_planner.evaluation.tabletop import (
    CUBE_CENTRE_HEIGHT,
    ENV_ID,
    moves_succeeded,
    project,
)

Recall = Literal["first", "previous"]
RECALLS: tuple[Recall, ...] = get_args(Recall)
NUM_CUBES = 3
NUM_MOVES_SINCE = {1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 6: 4, 7: 4, 8: 5}
"""Horizon in chunks of 8 frames to the moves after the one that takes the asked cube away.

The expert's moves are about 12 frames long, so these reach the horizon most often.
"""
MOST_MOVES = 8
_AT_ITS_PLACE = 0.01
_MOST_SEEDS_PER_TRIAL = 200


@dataclass(frozen=True, eq=False)
class Past:
    """An episode so far: what a memory can learn of it.

    Attributes:
        past: ``(T + 1, H, W, 3)`` uint8, all frames up to and with the present one.
        actions: ``(T, A)`` float32 that led here.
        told: T strings, the instruction in force at each action.
    """

    past: np.ndarray
    actions: np.ndarray
    told: list[str]


@dataclass(frozen=True, eq=False)
class ReturnTrial(Past):
    """An expert's episode up to the moment at which a cube is asked back.

    Attributes:
        env_kwargs: of the environment.
        seed: of the episode.
        instruction: asks a cube back.
        cube: its colour.
        target_px: ``(2,)``, where the camera shows the place asked for.
        future: ``(num_future, H, W, 3)`` uint8: the expert returns the cube; where it needs fewer
            frames, the last one stays.
    """

    env_kwargs: dict[str, Any]
    seed: int
    instruction: str
    cube: str
    target_px: np.ndarray
    future: np.ndarray


def draw_trials(
    recall: Recall,
    horizon: int,
    num_trials: int,
    first_seed: int,
    num_future: int,
    chunk_size: int = 8,
    num_moves_before: int = 0,
) -> list[ReturnTrial]:
    """The first seeds' episodes with exactly this memory horizon.

    The horizon is the number of whole chunks between the last frame that shows the cube at the
    place that it will be asked back to, and the request. An episode counts only where all moves
    before the request succeeded, so that there is something to return, and the expert then needs
    no more than ``num_future`` frames.

    Args:
        recall: ``"first"`` or ``"previous"``.
        horizon: 1 to 8 chunks.
        num_trials: how many.
        first_seed: of the seeds that are tried, one after the other.
        num_future: frames in which the return is judged.
        chunk_size: frames of a chunk.
        num_moves_before: moves of other cubes before the asked one first moves. With 0 it is the
            first to move, so that a memory could know it by that alone.

    Raises:
        SfvgenError: an argument is out of range, or too few episodes have this horizon.
    """
    require(recall in RECALLS, f"the recall must be one of {', '.join(RECALLS)}, got {recall!r}")
    require(
        horizon in NUM_MOVES_SINCE,
        f"the memory horizon must be from 1 to {max(NUM_MOVES_SINCE)} chunks, got {horizon}",
    )
    require(num_moves_before >= 0, f"num_moves_before must be at least 0, got {num_moves_before}")
    num_moves = num_moves_before + NUM_MOVES_SINCE[horizon] + (1 if recall == "first" else 2)
    require(
        num_moves <= MOST_MOVES,
        f"a memory horizon of {horizon} chunks after {num_moves_before} other moves takes "
        f"{num_moves} moves, but the environment makes {MOST_MOVES} at most",
    )
    env_kwargs: dict[str, Any] = {
        "num_cubes": NUM_CUBES,
        "num_moves": num_moves,
        "recall": recall,
    }
    if num_moves_before:
        env_kwargs["num_moves_before"] = num_moves_before
    env = make_env(ENV_ID, env_kwargs)
    expert = _Watched(make_policy("expert", env), env)
    seeds = range(first_seed, first_seed + _MOST_SEEDS_PER_TRIAL * num_trials)
    trials: list[ReturnTrial] = []
    description = f"episodes, recall {recall}, horizon {horizon}"
    with tqdm(total=num_trials, desc=description, unit="episode", dynamic_ncols=True) as progress:
        for seed in seeds:
            if not _may_fit(env, seed, NUM_MOVES_SINCE[horizon]):
                continue
            episode = record_episode(env, expert, seed, EpisodeSource(env_kwargs=env_kwargs))
            steps_since = _steps_since(episode, expert.places)
            trial = _trial(env, episode, num_future)
            if steps_since // chunk_size == horizon and trial is not None:
                trials.append(trial)
                progress.update()
            if len(trials) == num_trials:
                break
    env.close()
    require(
        len(trials) == num_trials,
        f"only {len(trials)} of the episodes with seeds {seeds[0]} to {seeds[-1]} have a memory "
        f"horizon of {horizon} chunks of {chunk_size} frames, {num_trials} are needed",
    )
    return trials


class _Watched:
    """Acts as a policy and notes where the cube that will be asked back stands at every step."""

    def __init__(self, policy: Policy, env: Environment) -> None:
        self._policy = policy
        self._tabletop: Any = env.unwrapped
        self.places: list[np.ndarray] = []

    def reset(self, seed: int | None = None) -> None:
        self._policy.reset(seed)
        self.places = []

    def act(self, observation: Any, instruction: str) -> np.ndarray:
        colour = self._tabletop.plan.instructions[-1].cube
        self.places.append(self._tabletop.cube_position(colour))
        return self._policy.act(observation, instruction)


def _may_fit(env: Environment, seed: int, num_moves_since: int) -> bool:
    """Whether so many moves follow the one that takes the asked cube away from its place."""
    env.reset(seed=seed)
    tabletop: Any = env.unwrapped
    *moves, request = tabletop.plan.instructions
    own = [index for index, move in enumerate(moves) if move.cube == request.cube]
    away = own[0] if request.kind == "first" else own[-1]
    return len(moves) - 1 - away == num_moves_since


def _request(episode: Episode) -> int:
    """Number of the frame at which the cube is asked back: the present of the trial."""
    return episode.instructions.index(episode.instructions[-1])


def _steps_since(episode: Episode, places: Sequence[np.ndarray]) -> int:
    """Steps from the last frame before the request with the cube at its place to the request."""
    target = _target(episode)
    request = _request(episode)
    distances = np.linalg.norm(np.array(places[: request + 1]) - target, axis=-1)
    (at_place,) = np.nonzero(distances < _AT_ITS_PLACE)
    return request - int(at_place[-1]) if len(at_place) else 0


def _target(episode: Episode) -> np.ndarray:
    return np.array([*episode.info["instruction_results"][-1]["target_xy"], CUBE_CENTRE_HEIGHT])


def _trial(env: Environment, episode: Episode, num_future: int) -> ReturnTrial | None:
    request = _request(episode)
    future = episode.frames[request + 1 :]
    *_, result = episode.info["instruction_results"]
    if not (moves_succeeded(episode) and result["success"] and len(future) <= num_future):
        return None
    still = np.repeat(future[-1:], num_future - len(future), axis=0)
    return ReturnTrial(
        env_kwargs=episode.source.env_kwargs,
        seed=episode.seed,
        past=episode.frames[: request + 1],
        actions=episode.actions[:request],
        told=episode.instructions[:request],
        instruction=episode.instructions[-1],
        cube=result["cube"],
        target_px=project(env, _target(episode)),
        future=np.concatenate([future, still]),
    )
