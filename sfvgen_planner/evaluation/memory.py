"""What memory is worth: cubes that are asked back after their place left the context window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from sfvgen_planner.evaluation.chunks import place_error_px
from sfvgen_planner.evaluation.memory_closed_loop import (
    CLOSED_LOOP_FIGURES,
    NO_LOOP_FIGURE,
    measure_closed_loop,
)
from sfvgen_planner.evaluation.memory_config import MemoryConfig
from sfvgen_planner.evaluation.memory_cost import measure_batch_cost, measure_cost, measure_state
from sfvgen_planner.evaluation.memory_trials import (
    NUM_RETURN_CHUNKS,
    description,
    trial_figures,
    trial_groups,
    trial_states,
)
from sfvgen_planner.evaluation.memory_variants import REFERENCE, attached, imagine_returns
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.return_trials import ReturnTrial
from sfvgen_planner.evaluation.tabletop import locate_cube
from sfvgen_planner.world_model import load_world_model

HIT_PX = 2.0


def measure_open_loop(config: MemoryConfig) -> Iterator[Figure]:
    """Where the imagined cube ends after its return, against the place asked for.

    The memory has seen the true frames, chunk by chunk, up to the request; the return is imagined
    from the words.
    """
    variants = config.offered
    model = load_world_model(config.model).to(config.device)
    for trials, memories, fields in trial_groups(model, config, config.num_open_loop_episodes):
        errors: dict[str, np.ndarray] = {}
        num_memories = min(config.batch_size, len(trials))
        for name, variant in variants.items():
            what = description(name, fields)
            with attached(variant, model, config.model, num_memories) as memory:
                states = trial_states(variant, memory, memories, what)
                frames = imagine_returns(
                    model,
                    trials,
                    variant,
                    memory,
                    states,
                    num_chunks=NUM_RETURN_CHUNKS,
                    batch_size=config.batch_size,
                    description=f"{what}: imagined",
                    **config.sampling,
                )
            errors[name] = open_loop_error_px(trials, frames)
            values = {
                "open_loop_error_px": (errors[name], "px of 64"),
                "open_loop_hit_rate_2px": (errors[name] <= HIT_PX, "1"),
            }
            yield from trial_figures(values, trials, config, **config.told(name), **fields)
        differences = {
            name: {
                "open_loop_error_px_difference": (errors[name] - errors[REFERENCE], "px of 64"),
                "open_loop_hit_rate_2px_difference": (
                    (errors[name] <= HIT_PX) - 1.0 * (errors[REFERENCE] <= HIT_PX),
                    "1",
                ),
            }
            for name in errors
            if REFERENCE in errors and name != REFERENCE
        }
        for name, values in differences.items():
            yield from trial_figures(
                values, trials, config, **config.told(name), reference=REFERENCE, **fields
            )


def open_loop_error_px(trials: Sequence[ReturnTrial], frames: np.ndarray) -> np.ndarray:
    """Pixels ``(N,)`` from each asked cube in its video's last frame to the place asked for.

    Args:
        trials: N of them.
        frames: imagined, ``(N, T, H, W, 3)`` uint8. A cube that is not in the picture at all is
            off by its whole width.
    """
    places = [locate_cube(video[-1], t.cube) for t, video in zip(trials, frames, strict=True)]
    targets = np.stack([trial.target_px for trial in trials])
    return place_error_px(np.stack(places), targets, frames.shape[-2])


FIGURES: dict[str, Callable[[MemoryConfig], Iterable[Figure]]] = {
    "open_loop_hit_rate_2px": measure_open_loop,
    "open_loop_error_px": measure_open_loop,
    **dict.fromkeys((*CLOSED_LOOP_FIGURES, NO_LOOP_FIGURE), measure_closed_loop),
    "fast_learning_time_overhead": measure_cost,
    "fast_learning_memory_overhead": measure_cost,
    "batch_16_cost_ratio": measure_batch_cost,
    "state_kb": measure_state,
}
"""Figure to the measurement that it comes from; the memory overhead needs a GPU."""
