"""What memory is worth: cubes that are asked back after their place left the context window."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.evaluation.chunks import place_error_px
from sfvgen_planner.evaluation.measure import HELD_OUT_SEED, EvaluationConfig, check_choices
from sfvgen_planner.evaluation.memory_variants import (
    REFERENCE,
    VARIANTS,
    State,
    TrialMemories,
    Variant,
    attached,
    imagine_returns,
    offered,
)
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.return_trials import (
    NUM_CUBES,
    NUM_MOVES_SINCE,
    RECALLS,
    Recall,
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
MANY_STEPS = 25
"""Denoiser calls per chunk at which the paper's cost of fast learning is to be compared."""
NUM_BATCHED = 16
_INSTRUCTION = "return the red cube"


@dataclass(frozen=True)
class MemoryConfig(EvaluationConfig):
    """What is compared.

    Attributes:
        num_open_loop_episodes: trials for each recall and horizon whose return is imagined.
        num_closed_loop_episodes: of these, those that are planned and executed.
        num_timed_runs: repetitions of a timing, after one that is not counted.
        variants: names of `VARIANTS`, by default all that the model has; each is measured on the
            same trials with the same noise.
        recalls: which place is asked for.
        horizons: memory horizons in chunks.
        num_inference_steps: denoiser calls per chunk.
        guidance_scale: of the instruction.
    """

    num_open_loop_episodes: int = 200
    num_closed_loop_episodes: int = 200
    num_timed_runs: int = 5
    variants: tuple[str, ...] = ()
    recalls: tuple[Recall, ...] = RECALLS
    horizons: tuple[int, ...] = tuple(NUM_MOVES_SINCE)
    num_inference_steps: int = 4
    guidance_scale: float = 2.0

    def __post_init__(self) -> None:
        check_choices(
            {
                "variant": (self.variants, tuple(VARIANTS)),
                "recall": (self.recalls, RECALLS),
                "horizon": (self.horizons, tuple(NUM_MOVES_SINCE)),
            }
        )

    @property
    def offered(self) -> dict[str, Variant]:
        """The variants to compare, by name."""
        return offered(self.variants, self.model)

    @property
    def timed_steps(self) -> tuple[int, ...]:
        """Denoiser calls per chunk at which costs are measured."""
        return tuple(dict.fromkeys((MANY_STEPS, self.num_inference_steps)))

    @property
    def sampling(self) -> dict[str, Any]:
        """How chunks are imagined."""
        return {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
        }


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


def measure_cost(config: MemoryConfig) -> Iterator[Figure]:
    """What fast learning adds to the generation of a chunk, in time and memory."""
    variants = _distinct_memories(config)
    model = load_world_model(config.model).to(config.device)
    # All of them first: a memory leaves the model with attention that is made for gradients.
    plain = {
        steps: _cost(partial(_generate, model, None, steps, config), config)
        for steps in config.timed_steps
    }
    for name, variant in variants.items():
        for steps in config.timed_steps:
            cost = _cost_of_memories(variant, 1, model, steps, config)
            for figure, values in _overheads(plain[steps], cost).items():
                yield _cost_figure(figure, values, name, steps, config)


def measure_batch_cost(config: MemoryConfig) -> Iterator[Figure]:
    """What many memories cost that write a chunk and imagine one in a batch, against one."""
    variants = _distinct_memories(config)
    model = load_world_model(config.model).to(config.device)
    for name, variant in variants.items():
        for steps in config.timed_steps:
            one, many = (
                _cost_of_memories(variant, count, model, steps, config)
                for count in (1, NUM_BATCHED)
            )
            values = many.seconds / one.seconds.mean()
            yield _cost_figure("batch_16_cost_ratio", values, name, steps, config)


def measure_state(config: MemoryConfig) -> Iterator[Figure]:
    """Size of an episode's memory after its first chunk."""
    variants = _distinct_memories(config)
    model = load_world_model(config.model).to(config.device)
    for name, variant in variants.items():
        with attached(variant, model, config.model) as memory:
            assert memory is not None
            _generate_and_learn(model, memory, 1, config)
            size = sum(tensor.nbytes for tensor in memory.state().values()) / 1000
        yield Figure.measured(
            "state_kb", [size], "kB", [0], config.device, variant=name, model=config.model
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


def _distinct_memories(config: MemoryConfig) -> dict[str, Variant]:
    """Variants with a memory of their own: a control costs what its memory costs."""
    return {
        name: variant
        for name, variant in config.offered.items()
        if variant.memory is not None and not variant.of_other_episode
    }


@dataclass(frozen=True)
class _Cost:
    """Seconds of each run, and the peak of the device's memory in bytes where it is a GPU."""

    seconds: np.ndarray
    peak_bytes: int | None


def _cost(work: Callable[[], object], config: MemoryConfig) -> _Cost:
    on_gpu = torch.device(config.device).type == "cuda"
    work()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(config.device)
    seconds = []
    for _ in range(config.num_timed_runs):
        started = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize(config.device)
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated(config.device) if on_gpu else None
    return _Cost(np.array(seconds), peak)


def _overheads(plain: _Cost, cost: _Cost) -> dict[str, np.ndarray]:
    """What the second costs more than the first, as a share of it."""
    overheads = {"fast_learning_time_overhead": cost.seconds / plain.seconds.mean() - 1}
    if plain.peak_bytes is not None and cost.peak_bytes is not None:
        share = cost.peak_bytes / plain.peak_bytes - 1
        overheads["fast_learning_memory_overhead"] = np.array([share])
    return overheads


def _cost_of_memories(
    variant: Variant,
    num_memories: int,
    model: VideoWorldModel,
    num_inference_steps: int,
    config: MemoryConfig,
) -> _Cost:
    """Of one chunk that each memory imagines and learns."""
    with attached(variant, model, config.model, num_memories) as memory:
        assert memory is not None
        work = partial(_generate_and_learn, model, memory, num_inference_steps, config)
        return _cost(work, config)


def _cost_figure(
    name: str, values: np.ndarray, variant: str, num_inference_steps: int, config: MemoryConfig
) -> Figure:
    return Figure.measured(
        name,
        values,
        "1",
        [0] * len(values),
        config.device,
        variant=variant,
        model=config.model,
        num_inference_steps=num_inference_steps,
        guidance_scale=config.guidance_scale,
    )


def _generate(
    model: VideoWorldModel,
    memory: EpisodicMemory | None,
    num_inference_steps: int,
    config: MemoryConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Imagine one chunk of latents after an arbitrary past, one for each memory."""
    channels, height, width = model.latent_size
    count = 1 if memory is None else memory.num_memories
    num_past = model.config.num_past_frames if memory is None else memory.num_past_frames
    shape = (count, channels, num_past, height, width)
    past = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    output = model(
        past,
        instruction=_INSTRUCTION,
        num_frames=model.config.num_future_frames,
        num_inference_steps=num_inference_steps,
        guidance_scale=config.guidance_scale,
        output_type="latent",
    )
    return past, output.latents


def _generate_and_learn(
    model: VideoWorldModel, memory: EpisodicMemory, num_inference_steps: int, config: MemoryConfig
) -> None:
    past, chunks = _generate(model, memory, num_inference_steps, config)
    memory.write_batch(past, chunks, [_INSTRUCTION] * memory.num_memories, measure=False)
