"""What memory is worth: cubes that are asked back after their place left the context window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from sfvgen_planner.evaluation.memory_across_episodes import (
    ACROSS_EPISODES_FIGURES,
    measure_across_episodes,
)
from sfvgen_planner.evaluation.memory_closed_loop import (
    CLOSED_LOOP_FIGURES,
    NO_LOOP_FIGURE,
    measure_closed_loop,
)
from sfvgen_planner.evaluation.memory_config import MemoryConfig
from sfvgen_planner.evaluation.memory_cost import (
    measure_batch_cost,
    measure_cost,
    measure_long_episodes,
    measure_state,
)
from sfvgen_planner.evaluation.memory_trials import (
    NUM_RETURN_CHUNKS,
    Values,
    description,
    differences,
    return_values,
    trial_figures,
    trial_groups,
    trial_states,
)
from sfvgen_planner.evaluation.memory_variants import REFERENCE, attached, imagine_returns
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.world_model import load_world_model


def measure_open_loop(config: MemoryConfig) -> Iterator[Figure]:
    """Where the imagined cube ends after its return, against the place asked for.

    The memory has seen the true frames, chunk by chunk, up to the request; the return is imagined
    from the words.
    """
    variants = config.offered
    model = load_world_model(config.model).to(config.device)
    groups = trial_groups(model, config, config.num_open_loop_episodes, variants.values())
    for trials, memories, fields in groups:
        values: dict[str, Values] = {}
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
            values[name] = return_values("open_loop", trials, frames)
            yield from trial_figures(values[name], trials, config, **config.told(name), **fields)
        for name in values:
            if REFERENCE in values and name != REFERENCE:
                yield from trial_figures(
                    differences(values[name], values[REFERENCE]),
                    trials,
                    config,
                    **config.told(name),
                    reference=REFERENCE,
                    **fields,
                )


FIGURES: dict[str, Callable[[MemoryConfig], Iterable[Figure]]] = {
    "open_loop_hit_rate_2px": measure_open_loop,
    "open_loop_error_px": measure_open_loop,
    **dict.fromkeys(ACROSS_EPISODES_FIGURES, measure_across_episodes),
    **dict.fromkeys((*CLOSED_LOOP_FIGURES, NO_LOOP_FIGURE), measure_closed_loop),
    "fast_learning_time_overhead": measure_cost,
    "fast_learning_memory_overhead": measure_cost,
    "batch_16_cost_ratio": measure_batch_cost,
    "chunk_seconds": measure_long_episodes,
    "state_kb": measure_state,
}
"""Figure to the measurement that it comes from; the memory overhead needs a GPU."""
