"""What memory is worth: cubes that are asked back after their place left the context window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.evaluation.chunks import place_error_px
from sfvgen_planner.evaluation.measure import HELD_OUT_SEED
from sfvgen_planner.evaluation.memory_config import MemoryConfig
from sfvgen_planner.evaluation.memory_cost import measure_batch_cost, measure_cost, measure_state
from sfvgen_planner.evaluation.memory_variants import (
    REFERENCE,
    VARIANTS,
    State,
    TrialMemories,
    Variant,
    attached,
    imagine_returns,
)
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.return_trials import (
    NUM_CUBES,
    ReturnTrial,
    draw_trials,
)
from sfvgen_planner.evaluation.statistics import Estimate
from sfvgen_planner.evaluation.tabletop import ENV_ID, locate_cube
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.memory import EpisodicMemory
from sfvgen_planner.planning import PlanningPolicy, VideoPlanConfig, VideoPlanner
from sfvgen_planner.world_model import VideoWorldModel, load_world_model

NUM_RETURN_CHUNKS = 2
"""Chunks that a return is imagined in; the expert's returns are 10 to 16 frames long."""
HIT_PX = 2.0


def measure_open_loop(config: MemoryConfig) -> Iterator[Figure]:
    """Where the imagined cube ends after its return, against the place asked for.

    The memory has seen the true frames, chunk by chunk, up to the request; the return is imagined
    from the words.
    """
    variants = config.offered
    model = load_world_model(config.model).to(config.device)
    for trials, memories, fields in _groups(model, config, config.num_open_loop_episodes):
        errors: dict[str, np.ndarray] = {}
        num_memories = min(config.batch_size, len(trials))
        for name, variant in variants.items():
            what = _description(name, fields)
            with attached(variant, model, config.model, num_memories) as memory:
                states = _states(variant, memory, memories, what)
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
            yield from _figures(values, trials, config, variant=name, **fields)
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
            yield from _figures(values, trials, config, variant=name, reference=REFERENCE, **fields)


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


def measure_closed_loop(config: MemoryConfig) -> Iterator[Figure]:
    """Where the simulator's cube ends when the video planner plans and executes its return.

    The expert's actions lead up to the request, so that every variant has the same past and the
    return alone is judged. Variants that are no memory but another context are left out: a plan is
    imagined from the usual context.
    """
    variants = {
        name: variant
        for name, variant in config.offered.items()
        if variant.memory is not None or variant == VARIANTS[REFERENCE]
    }
    model = load_world_model(config.model).to(config.device)
    planner = VideoPlanner.from_pretrained(config.model, VideoPlanConfig(**config.sampling))
    planner.inverse_dynamics.to(config.device)
    for trials, memories, fields in _groups(model, config, config.num_closed_loop_episodes):
        distances: dict[str, np.ndarray] = {}
        num_memories = min(config.batch_size, len(trials))
        for name, variant in variants.items():
            what = _description(name, fields)
            with attached(variant, model, config.model, num_memories) as memory:
                states = _states(variant, memory, memories, what)
            with attached(variant, model, config.model) as memory:
                results = _execute(model, planner, trials, memory, states, what)
            distances[name] = np.array([result["distance_m"] for result in results])
            values = {
                "closed_loop_distance_m": (distances[name], "m"),
                "closed_loop_success_rate": (
                    np.array([float(result["success"]) for result in results]),
                    "1",
                ),
            }
            yield from _figures(values, trials, config, variant=name, **fields)
        for name in variants:
            if REFERENCE not in distances or name == REFERENCE:
                continue
            difference = distances[name] - distances[REFERENCE]
            values = {"closed_loop_distance_m_difference": (difference, "m")}
            told = {"variant": name, "reference": REFERENCE, **fields}
            yield from _figures(values, trials, config, **told)
            yield Figure.of_estimate(
                "distance_ratio_no_temp_lora",
                Estimate.of_ratio(distances[name], distances[REFERENCE]),
                "1",
                [trial.seed for trial in trials],
                config.device,
                model=config.model,
                **told,
                **config.sampling,
            )


FIGURES: dict[str, Callable[[MemoryConfig], Iterable[Figure]]] = {
    "open_loop_hit_rate_2px": measure_open_loop,
    "open_loop_error_px": measure_open_loop,
    "closed_loop_distance_m": measure_closed_loop,
    "closed_loop_success_rate": measure_closed_loop,
    "distance_ratio_no_temp_lora": measure_closed_loop,
    "fast_learning_time_overhead": measure_cost,
    "fast_learning_memory_overhead": measure_cost,
    "batch_16_cost_ratio": measure_batch_cost,
    "state_kb": measure_state,
}
"""Figure to the measurement that it comes from; the memory overhead needs a GPU."""


def _groups(
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


def _description(name: str, fields: Mapping[str, Any]) -> str:
    return f"{name}, recall {fields['recall']}, horizon {fields['horizon']}"


def _states(
    variant: Variant, memory: EpisodicMemory | None, memories: TrialMemories, what: str
) -> list[State] | None:
    return None if memory is None else memories.states(variant, memory, f"{what}: memories")


def _execute(
    model: VideoWorldModel,
    planner: VideoPlanner,
    trials: Sequence[ReturnTrial],
    memory: EpisodicMemory | None,
    states: Sequence[State] | None,
    what: str,
) -> list[dict[str, Any]]:
    """The environment's own result of each trial's request."""
    results = []
    env = make_env(ENV_ID, trials[0].env_kwargs)
    rows = tqdm(range(len(trials)), desc=f"{what}: executed", unit="episode", dynamic_ncols=True)
    for row in rows:
        trial = trials[row]
        # The memory knows the past already; it joins at the request and goes on learning.
        imagination = ImaginationWrapper(env, model)
        observation, info = imagination.reset(seed=trial.seed)
        for action in trial.actions:
            observation, _, terminated, _, info = imagination.step(action)
        if memory is not None:
            assert states is not None
            memory.load(states[row])
            imagination.memory = memory
        policy = PlanningPolicy(imagination, planner)
        policy.reset(trial.seed)
        terminated = False
        while not terminated:
            action = policy.act(observation, info["instruction"])
            observation, _, terminated, _, info = imagination.step(action)
        results.append(info["instruction_results"][-1])
    env.close()
    return results


def _figures(
    values: Mapping[str, tuple[np.ndarray, str]],
    trials: Sequence[ReturnTrial],
    config: MemoryConfig,
    **fields: Any,
) -> Iterator[Figure]:
    for name, (per_trial, unit) in values.items():
        yield Figure.measured(
            name,
            per_trial,
            unit,
            [trial.seed for trial in trials],
            config.device,
            **fields,
            model=config.model,
            num_cubes=NUM_CUBES,
            **config.sampling,
        )
