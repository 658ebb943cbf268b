"""What the memory of an earlier episode is worth when its scene comes back."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sfvgen_planner.evaluation.earlier_visits import (
    VISITS,
    earlier_visits,
    first_frames,
    recalled,
    recognised,
    record_visits,
)
from sfvgen_planner.evaluation.memory_config import MemoryConfig
from sfvgen_planner.evaluation.memory_trials import (
    NUM_RETURN_CHUNKS,
    Values,
    description,
    differences,
    return_values,
    trial_figures,
    trial_groups,
)
from sfvgen_planner.evaluation.memory_variants import (
    OURS,
    REFERENCE,
    VARIANTS,
    State,
    attached,
    imagine_returns,
    learn,
)
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.return_trials import NUM_CUBES, ReturnTrial
from sfvgen_planner.memory import EpisodicMemory, MemoryBank
from sfvgen_planner.world_model import VideoWorldModel, load_world_model

logger = logging.getLogger(__name__)

ACROSS_EPISODES_FIGURES = (
    "across_episodes_hit_rate_2px",
    "across_episodes_error_px",
    "bank_scene_hit_rate",
    "bank_false_scene_rate",
)
EARLIER_VISIT = "earlier_visit"
EARLIER_VISIT_AND_OWN = "earlier_visit_and_own"
RECALL = "first"
"""An earlier visit has seen where a cube first stands, but not where this visit puts it since."""
NUM_STEPS_ELSEWHERE = 3
"""Steps after which the gripper has left its first place, but no cube has."""


def measure_across_episodes(config: MemoryConfig) -> Iterator[Figure]:
    """Where the imagined cube ends after its return, by what is remembered of the scene.

    All trials' scenes were visited once before, and a bank holds the memories of these visits.
    Compared are no memory, the trial's own from the reset to the request (``ours``), the one that
    the bank gives for the trial's first frame as it is (``earlier_visit``: a robot that has only
    just come back), and that one after it has learnt what ``ours`` has (``earlier_visit_and_own``:
    what the wrapper does). All are imagined as in the open loop, with the same noise.
    """
    if RECALL not in config.recalls or OURS not in config.offered:
        logger.warning(
            "%s are left out: they compare the variant %s, asked for the %s place",
            ", ".join(ACROSS_EPISODES_FIGURES),
            OURS,
            RECALL,
        )
        return
    model, variant = load_world_model(config.model).to(config.device), config.offered[OURS]
    of_first = replace(config, recalls=(RECALL,))
    groups = trial_groups(model, of_first, config.num_open_loop_episodes, [variant])
    for trials, memories, fields in groups:
        plain = _imagined(model, trials, None, None, config, description(REFERENCE, fields))
        yield from trial_figures(plain, trials, config, variant=REFERENCE, **fields)
        num_memories = min(config.batch_size, len(trials))
        with attached(variant, model, config.model, num_memories) as memory:
            assert memory is not None
            what = description(OURS, fields)
            states = memories.states(variant, memory, f"{what}: memories")
            own = _imagined(model, trials, memory, states, config, what)
            yield from trial_figures(own, trials, config, **config.told(OURS), **fields)
            references = {REFERENCE: plain, OURS: own}
            for visit in VISITS:
                told = {"visit": visit, **fields}
                yield from _visit_figures(memory, visit, trials, references, config, told)


def _visit_figures(
    memory: EpisodicMemory,
    visit: str,
    trials: Sequence[ReturnTrial],
    references: Mapping[str, Values],
    config: MemoryConfig,
    fields: Mapping[str, Any],
) -> Iterator[Figure]:
    """What the bank knows, and what its memories are worth, after visits of one kind."""
    what = {
        name: f"{description(name, fields)}, {visit}"
        for name in (EARLIER_VISIT, EARLIER_VISIT_AND_OWN)
    }
    with TemporaryDirectory() as folder, MemoryBank(folder, memory.world_model) as bank:
        visits = earlier_visits(visit, trials)
        record_visits(bank, memory, visits, f"{what[EARLIER_VISIT]}: memories")
        yield from _bank_figures(bank, trials, config, fields)
        starts = [recalled(bank, memory, trial.past[0]) for trial in trials]
    both = learn(memory, trials, f"{what[EARLIER_VISIT_AND_OWN]}: memories", starts)
    for name, states in {EARLIER_VISIT: starts, EARLIER_VISIT_AND_OWN: both}.items():
        values = _imagined(memory.world_model, trials, memory, states, config, what[name])
        told = {**config.told(OURS), **fields, "variant": name}
        yield from trial_figures(values, trials, config, **told)
        for reference, others in references.items():
            paired = differences(values, others)
            told["reference"] = reference
            yield from trial_figures(paired, trials, config, **told)


def _imagined(
    model: VideoWorldModel,
    trials: Sequence[ReturnTrial],
    memory: EpisodicMemory | None,
    states: Sequence[State] | None,
    config: MemoryConfig,
    what: str,
) -> Values:
    """Where each trial's cube is imagined to end under its memory."""
    frames = imagine_returns(
        model,
        trials,
        VARIANTS[REFERENCE if memory is None else OURS],
        memory,
        states,
        num_chunks=NUM_RETURN_CHUNKS,
        batch_size=config.batch_size,
        description=f"{what}: imagined",
        **config.sampling,
    )
    return return_values("across_episodes", trials, frames)


def _bank_figures(
    bank: MemoryBank, trials: Sequence[ReturnTrial], config: MemoryConfig, fields: Mapping[str, Any]
) -> Iterator[Figure]:
    """How often the bank knows a scene that it holds, and takes a new one for one that it holds.

    It is asked with the first frame, as in the wrapper, which the earlier visit had too; with one
    where the gripper stands elsewhere; and with the one of the request, where cubes do too.
    """
    moments = {"reset": 0, "gripper_elsewhere": NUM_STEPS_ELSEWHERE, "request": -1}
    for asked_at, moment in moments.items():
        known = [recognised(bank, trial.past[moment]) for trial in trials]
        hits = np.array(
            [found is not None and found.episode.number == row for row, found in enumerate(known)]
        )
        told = {"asked_at": asked_at, **fields}
        yield from trial_figures({"bank_scene_hit_rate": (hits, "1")}, trials, config, **told)
    seeds = range(trials[-1].seed + 1, trials[-1].seed + 1 + len(trials))
    frames = first_frames(trials[0].env_kwargs, seeds)
    yield Figure.measured(
        "bank_false_scene_rate",
        [recognised(bank, frame) is not None for frame in frames],
        "1",
        seeds,
        config.device,
        model=config.model,
        num_cubes=NUM_CUBES,
        **fields,
    )
