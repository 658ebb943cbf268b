"""Trials of the return task, their memories, and the figures that come of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sfvgen_planner.evaluation.measure import HELD_OUT_SEED
from sfvgen_planner.evaluation.memory_config import MemoryConfig
from sfvgen_planner.evaluation.memory_variants import State, TrialMemories, Variant
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.return_trials import NUM_CUBES, ReturnTrial, draw_trials
from sfvgen_planner.memory import EpisodicMemory
from sfvgen_planner.world_model import VideoWorldModel

NUM_RETURN_CHUNKS = 2
"""Chunks that a return is imagined in; the expert's returns are 10 to 16 frames long."""


def trial_groups(
    model: VideoWorldModel, config: MemoryConfig, num_episodes: int
) -> Iterator[tuple[list[ReturnTrial], TrialMemories, dict[str, Any]]]:
    """The trials of each recall and horizon, their memories, and what tells their figures apart."""
    chunk_size = model.config.num_future_frames
    for recall in config.recalls:
        for horizon in config.horizons:
            trials = draw_trials(
                recall,
                horizon,
                num_episodes,
                HELD_OUT_SEED,
                NUM_RETURN_CHUNKS * chunk_size,
                chunk_size,
            )
            yield trials, TrialMemories(trials), {"recall": recall, "horizon": horizon}


def description(name: str, fields: Mapping[str, Any]) -> str:
    """Of a progress bar."""
    return f"{name}, recall {fields['recall']}, horizon {fields['horizon']}"


def trial_states(
    variant: Variant, memory: EpisodicMemory | None, memories: TrialMemories, what: str
) -> list[State] | None:
    """Each trial's memory at the request; None where the variant has none."""
    return None if memory is None else memories.states(variant, memory, f"{what}: memories")


def trial_figures(
    values: Mapping[str, tuple[np.ndarray, str]],
    trials: Sequence[ReturnTrial],
    config: MemoryConfig,
    **fields: Any,
) -> Iterator[Figure]:
    """Figures of values `(trials,)` and their units, by name; `fields` tell them apart."""
    for name, (per_trial, unit) in values.items():
        yield Figure.measured(
            name,
            per_trial,
            unit,
            [trial.seed for trial in trials],
            config.device,
            **{"model": config.model, **fields},
            num_cubes=NUM_CUBES,
            **config.sampling,
        )
