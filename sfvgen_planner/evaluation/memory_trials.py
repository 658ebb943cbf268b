"""Trials of the return task, their memories, and the figures that come of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sfvgen_planner.errors import require
from sfvgen_planner.evaluation.chunks import place_error_px
from sfvgen_planner.evaluation.measure import HELD_OUT_SEED
from sfvgen_planner.evaluation.memory_config import MemoryConfig
from sfvgen_planner.evaluation.memory_variants import State, TrialMemories, Variant
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.return_trials import NUM_CUBES, ReturnTrial, draw_trials
from sfvgen_planner.evaluation.tabletop import locate_cube
from sfvgen_planner.memory import EpisodicMemory
from sfvgen_planner.world_model import VideoWorldModel

NUM_RETURN_CHUNKS = 2
"""Chunks that a return is imagined in; the expert's returns are 10 to 16 frames long."""
HIT_PX = 2.0

Values = Mapping[str, tuple[np.ndarray, str]]
"""Values `(trials,)` and their units, by the names of their figures."""


def trial_groups(
    model: VideoWorldModel,
    config: MemoryConfig,
    num_episodes: int,
    variants: Iterable[Variant],
) -> Iterator[tuple[list[ReturnTrial], TrialMemories, dict[str, Any]]]:
    """The trials of each recall and horizon, their memories, and what tells their figures apart.

    Args:
        model: that is measured.
        config: recalls and horizons.
        num_episodes: trials of each.
        variants: that are measured on them.

    Raises:
        SfvgenError: a variant remembers another trial, but there is only one.
    """
    require(
        num_episodes > 1 or not any(variant.of_other_episode for variant in variants),
        "the memory of another episode needs at least 2 episodes: ask for more, or name other "
        "variants",
    )
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
                config.num_moves_before,
            )
            fields: dict[str, Any] = {"recall": recall, "horizon": horizon}
            if config.num_moves_before:
                fields["num_moves_before"] = config.num_moves_before
            yield trials, TrialMemories(trials), fields


def description(name: str, fields: Mapping[str, Any]) -> str:
    """Of a progress bar."""
    return f"{name}, recall {fields['recall']}, horizon {fields['horizon']}"


def trial_states(
    variant: Variant, memory: EpisodicMemory | None, memories: TrialMemories, what: str
) -> list[State] | None:
    """Each trial's memory at the request; None where the variant has none."""
    return None if memory is None else memories.states(variant, memory, f"{what}: memories")


def return_values(prefix: str, trials: Sequence[ReturnTrial], frames: np.ndarray) -> Values:
    """Where each asked cube ends in its video, against the place asked for.

    Args:
        prefix: of the figures' names.
        trials: N of them.
        frames: imagined, ``(N, T, H, W, 3)`` uint8. A cube that is not in the last picture at all
            is off by its whole width.
    """
    places = [locate_cube(video[-1], t.cube) for t, video in zip(trials, frames, strict=True)]
    targets = np.stack([trial.target_px for trial in trials])
    errors = place_error_px(np.stack(places), targets, frames.shape[-2])
    return {
        f"{prefix}_error_px": (errors, "px of 64"),
        f"{prefix}_hit_rate_2px": (1.0 * (errors <= HIT_PX), "1"),
    }


def differences(values: Values, references: Values) -> Values:
    """Trial by trial what is above the reference, for the figures that both have."""
    return {
        f"{name}_difference": (values[name][0] - references[name][0], unit)
        for name, (_, unit) in values.items()
        if name in references
    }


def trial_figures(
    values: Values,
    trials: Sequence[ReturnTrial],
    config: MemoryConfig,
    **fields: Any,
) -> Iterator[Figure]:
    """A figure of each of the values; `fields` tell them apart."""
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
