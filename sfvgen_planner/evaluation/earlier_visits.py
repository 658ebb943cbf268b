"""Earlier visits to the scenes of trials, and the bank that keeps what was learnt in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from sfvgen_policies import make_policy
from tqdm import tqdm

from sfvgen_planner.data.camera import camera_frame
from sfvgen_planner.data.environment import Environment, make_env
from sfvgen_planner.data.episode import EpisodeSource
from sfvgen_planner.data.rollout import record_episode
from sfvgen_planner.evaluation.memory_variants import State, write_chunks
from sfvgen_planner.evaluation.return_trials import Past, ReturnTrial
from sfvgen_planner.evaluation.tabletop import ENV_ID
from sfvgen_planner.memory import EpisodicMemory, MemoryBank, NearestMemory

VISITS = ("same_moves", "asked_cube_first", "asked_cube_last", "asked_cube_still")
"""What was done in an earlier visit.

Either what the trial does, in other ways, for as long as the trial's past; or cubes were put on
pads: the one that the trial asks back first, or last, or only the others.
"""
_NOISE = 0.3
"""Of the expert's velocities on its other ways, as a share of full speed."""


def earlier_visits(visit: str, trials: Sequence[ReturnTrial]) -> list[Past]:
    """Another episode in each trial's scene; with the trial's seed its first picture is the same.

    Args:
        visit: of `VISITS`.
        trials: at least one, all with the same ``env_kwargs``.
    """
    env_kwargs = trials[0].env_kwargs
    env, noise = make_env(ENV_ID, env_kwargs), 0.0
    if visit == "same_moves":
        noise = _NOISE
    else:
        env = _OtherMoves(env, visit)
    expert = make_policy("expert", env, noise=noise)
    source = EpisodeSource(env_kwargs=env_kwargs)
    visits = []
    for trial in tqdm(trials, desc=f"visits, {visit}", unit="episode", dynamic_ncols=True):
        episode = record_episode(env, expert, trial.seed, source)
        length = len(trial.actions) if visit == "same_moves" else len(episode)
        visits.append(
            Past(
                episode.frames[: length + 1],
                episode.actions[:length],
                episode.instructions[:length],
            )
        )
    env.close()
    return visits


class _OtherMoves(gym.Wrapper[Any, Any, Any, Any]):
    """The table task in which cubes are to be put on pads, whatever the seed asks."""

    def __init__(self, env: Environment, visit: str) -> None:
        super().__init__(env)
        self._visit = visit

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        tabletop: Any = self.unwrapped
        state, plan = tabletop.get_state(), tabletop.plan
        rng = np.random.default_rng(seed)
        asked = plan.instructions[-1].cube
        others = [str(cube) for cube in rng.permutation([c for c in plan.cubes if c != asked])]
        cubes = {
            "asked_cube_first": [asked, *others],
            "asked_cube_last": [*others, asked],
            "asked_cube_still": others,
        }[self._visit]
        pads = [str(pad) for pad in rng.permutation(list(plan.pads))]
        pad_of = dict(zip(cubes, pads, strict=False))
        if pad_of.get(asked) == plan.instructions[0].place:
            # Where the trial takes it: the visit would be no other.
            pad_of = dict(zip(cubes, pads[1:] + pads[:1], strict=False))
        moves = tuple(
            replace(
                plan.instructions[0],
                kind="pad",
                cube=cube,
                place=pad,
                target_xy=tuple(map(float, plan.pads[pad])),
            )
            for cube, pad in pad_of.items()
        )
        told = replace(state.episode, plan=replace(plan, instructions=moves))
        tabletop.set_state(replace(state, episode=told))
        return observation, {**info, "instruction": tabletop.instruction.text}


def first_frames(env_kwargs: dict[str, Any], seeds: Sequence[int]) -> list[np.ndarray]:
    """The first picture ``(H, W, 3)`` uint8 of each seed's scene."""
    env = make_env(ENV_ID, env_kwargs)
    frames = [camera_frame(env, env.reset(seed=seed)[0]).copy() for seed in seeds]
    env.close()
    return frames


def record_visits(
    bank: MemoryBank, memory: EpisodicMemory, visits: Sequence[Past], description: str
) -> None:
    """Learn every visit from an empty memory, as the wrapper does, and keep it in the bank.

    Args:
        bank: opened after the memory was attached; its next episodes are the visits, in order.
        memory: as many visits are learnt at once as it remembers.
        visits: of at least one chunk each.
        description: of the progress bar.
    """
    total, size = len(visits), memory.num_memories
    with tqdm(total=total, desc=description, unit="episode", dynamic_ncols=True) as progress:
        for first in range(0, total, size):
            some = visits[first : first + size]
            writers = [bank.begin(visit.past[0]) for visit in some]
            memory.reset()
            for rows, steps in write_chunks(memory, some):
                for row in rows:
                    visit, chunk = some[row], some[row].past[1:][steps]
                    told = visit.told[steps]
                    writers[row].append(chunk, visit.actions[steps], told, memory.state(row))
            for writer in writers:
                writer.close()
            progress.update(len(some))


def recognised(bank: MemoryBank, frame: np.ndarray) -> NearestMemory | None:
    """The nearest earlier episode, where the bank takes its scene for that of ``frame``."""
    nearest = bank.nearest(frame)
    return nearest if nearest is not None and nearest.is_same_scene else None


def recalled(bank: MemoryBank, memory: EpisodicMemory, frame: np.ndarray) -> State:
    """What an episode that begins with ``frame`` starts from, as in the wrapper.

    That is the recognised scene's memory; an empty one where there is none.
    """
    known = recognised(bank, frame)
    if known is not None:
        return known.state()
    memory.reset()
    return memory.state()
