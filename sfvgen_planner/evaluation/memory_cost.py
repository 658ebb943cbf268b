"""What memories cost: time, a GPU's memory, and the size of what an episode keeps."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from sfvgen_planner.evaluation.base_model_speed import build_base_model
from sfvgen_planner.evaluation.memory_config import MANY_STEPS, MemoryConfig
from sfvgen_planner.evaluation.memory_variants import (
    REFERENCE,
    Variant,
    attached,
    memory_settings,
    window,
)
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.memory import EpisodicMemory
from sfvgen_planner.memory.adapter_files import SLOW_WEIGHTS
from sfvgen_planner.world_model import VideoWorldModel, load_world_model
from sfvgen_planner.world_model.checkpoint import quiet_libraries
from sfvgen_planner.world_model.gradient_checkpointing import enable_gradient_checkpointing

NUM_BATCHED = 16
EPISODE_CHUNKS = (1, 4, 16)
BASE_MODEL_STEPS = (MANY_STEPS, 50)
BASE_MODEL = "text-to-video-ms-1.7b's architecture, random weights"
_INSTRUCTION = "return the red cube"


def measure_cost(config: MemoryConfig) -> Iterator[Figure]:
    """What fast learning adds to the generation of a chunk, in time and memory."""
    if config.base_model:
        yield from measure_base_model_cost(config)
        return
    variants = _distinct_memories(config)
    model = load_world_model(config.model).to(config.device)
    plain = {
        steps: _cost(partial(_generate, model, None, steps, config), config)
        for steps in config.timed_steps
    }
    for name, variant in variants.items():
        for steps in config.timed_steps:
            cost = _cost_of_memories(variant, 1, model, steps, config)
            for figure, values in _overheads(plain[steps], cost).items():
                yield _cost_figure(figure, values, name, steps, config)


def measure_base_model_cost(config: MemoryConfig) -> Iterator[Figure]:
    """The same for a model of the paper's size (section 3.2's figures), with random weights.

    A sample is what the pipeline gives, that is frames. The memories have the settings that they
    have on the small model; their writes keep few activations, because at this size all of them
    would need many times a sample's memory.
    """
    memories = _distinct_memories(config)
    model = build_base_model(config.device)
    with quiet_libraries():
        model.to(torch.bfloat16)
    # Known to fit; to find that out would take further samples.
    model.max_batch_size = 1
    enable_gradient_checkpointing(model.unet)
    plain = _base_model_costs(model, None, config)
    for steps, cost in plain.items():
        for figure, (values, unit) in cost.figures().items():
            yield _base_model_figure(figure, values, REFERENCE, steps, config, unit)
    for name, variant in memories.items():
        memory = EpisodicMemory(model, memory_settings(variant, config.model))
        costs = _base_model_costs(model, memory, config)
        for steps, cost in costs.items():
            overheads = {k: (v, "1") for k, v in _overheads(plain[steps], cost).items()}
            for figure, (values, unit) in (overheads | cost.figures()).items():
                yield _base_model_figure(
                    figure,
                    values,
                    name,
                    steps,
                    config,
                    unit,
                    num_noise_draws=memory.config.num_noise_draws,
                )
        memory.detach()


def _base_model_costs(
    model: VideoWorldModel, memory: EpisodicMemory | None, config: MemoryConfig
) -> dict[int, _Cost]:
    """Of as many denoiser calls at each number of steps, on a GPU through CUDA graphs."""
    if _on_gpu(config):
        # Graphs alone: to compile as many layers takes many minutes. Anew for each memory, because
        # graphs keep what they took.
        model.compile(disable=True)
    work: Callable[..., object]
    if memory is None:
        work = partial(_generate, model, None, config=config, output_type="np")
    else:
        work = partial(_generate_and_learn, model, memory, config=config, output_type="np")
        # From here on the memory is seen, and its writes have their graph.
        for _ in range(2):
            work(num_inference_steps=1)
    costs = {}
    for steps in BASE_MODEL_STEPS:
        runs = max(1, config.num_timed_runs * MANY_STEPS // steps)
        costs[steps] = _cost(
            partial(work, num_inference_steps=steps), replace(config, num_timed_runs=runs)
        )
    return costs


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


def measure_long_episodes(config: MemoryConfig) -> Iterator[Figure]:
    """Seconds to imagine a chunk, and to write it into a memory, as an episode grows longer."""
    model = load_world_model(config.model).to(config.device)
    num_past, size = model.config.num_past_frames, model.config.num_future_frames
    begin = torch.zeros(1, dtype=torch.long)
    for name, variant in config.offered.items():
        if variant.of_other_episode:
            continue
        for chunks in EPISODE_CHUNKS:
            length = chunks * size + 1
            context = variant.context(begin, begin + length - 1, num_past, length)
            with (
                window(model, context.shape[1]),
                attached(variant, model, config.model) as memory,
            ):
                work: Callable[..., object]
                if memory is None:
                    work = partial(_generate, model, None)
                else:
                    work = partial(_generate_and_learn, model, memory)
                    for _ in range(chunks):
                        work(1, config)
                cost = _cost(partial(work, config.num_inference_steps, config), config)
            yield _cost_figure(
                "chunk_seconds",
                cost.seconds,
                name,
                config.num_inference_steps,
                config,
                unit="s",
                episode_chunks=chunks,
            )


def measure_state(config: MemoryConfig) -> Iterator[Figure]:
    """Size of an episode's memory after its first chunk."""
    variants = _distinct_memories(config)
    model = load_world_model(config.model).to(config.device)
    for name, variant in variants.items():
        with attached(variant, model, config.model) as memory:
            assert memory is not None
            _generate_and_learn(model, memory, 1, config)
            state = memory.state()
            del state[SLOW_WEIGHTS]  # Tells whose memory it is, and is none of it.
            size = sum(tensor.nbytes for tensor in state.values()) / 1000
        yield Figure.measured(
            "state_kb", [size], "kB", [0], config.device, variant=name, model=config.model
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

    def figures(self) -> dict[str, tuple[np.ndarray, str]]:
        """Values and units by name."""
        figures = {"sample_seconds": (self.seconds, "s")}
        if self.peak_bytes is not None:
            figures["sample_peak_gb"] = (np.array([self.peak_bytes / 1e9]), "GB")
        return figures


def _cost(work: Callable[[], object], config: MemoryConfig) -> _Cost:
    """Of `work`, after a run that warms up and captures what there is to capture."""
    work()
    if _on_gpu(config):
        # What an earlier memory held counts until it is collected.
        gc.collect()
        torch.cuda.synchronize(config.device)
        torch.cuda.reset_peak_memory_stats(config.device)
    seconds = []
    for _ in range(config.num_timed_runs):
        started = time.perf_counter()
        work()
        if _on_gpu(config):
            torch.cuda.synchronize(config.device)
        seconds.append(time.perf_counter() - started)
    return _Cost(np.array(seconds), _peak_bytes(config) if _on_gpu(config) else None)


def _peak_bytes(config: MemoryConfig) -> int:
    """Memory that tensors took at most, and what CUDA graphs hold for their next run.

    A graph's own memory counts as allocated only while it is captured, and only its outputs'
    afterwards; but nothing else can have it.
    """
    torch.cuda.empty_cache()
    held_by_graphs = sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot(include_traces=False)
        if segment["segment_pool_id"] != (0, 0)
    )
    return torch.cuda.max_memory_allocated(config.device) + held_by_graphs


def _on_gpu(config: MemoryConfig) -> bool:
    return torch.device(config.device).type == "cuda"


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
    name: str,
    values: np.ndarray,
    variant: str,
    num_inference_steps: int,
    config: MemoryConfig,
    unit: str = "1",
    **fields: Any,
) -> Figure:
    fields = {"model": config.model, **config.told(variant), **fields}
    return Figure.measured(
        name,
        values,
        unit,
        [0] * len(values),
        config.device,
        num_inference_steps=num_inference_steps,
        guidance_scale=config.guidance_scale,
        **fields,
    )


def _base_model_figure(
    name: str,
    values: np.ndarray,
    variant: str,
    num_inference_steps: int,
    config: MemoryConfig,
    unit: str,
    **fields: Any,
) -> Figure:
    execution = "cuda graphs" if _on_gpu(config) else "eager"
    fields = {"model": BASE_MODEL, "execution": execution, **fields}
    return _cost_figure(name, values, variant, num_inference_steps, config, unit, **fields)


def _generate(
    model: VideoWorldModel,
    memory: EpisodicMemory | None,
    num_inference_steps: int,
    config: MemoryConfig,
    output_type: str = "latent",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Imagine one chunk after an arbitrary past, one for each memory; both as latents."""
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
        output_type=output_type,
    )
    return past, output.latents


def _generate_and_learn(
    model: VideoWorldModel,
    memory: EpisodicMemory,
    num_inference_steps: int,
    config: MemoryConfig,
    output_type: str = "latent",
) -> None:
    past, chunks = _generate(model, memory, num_inference_steps, config, output_type)
    memory.write_batch(past, chunks, [_INSTRUCTION] * memory.num_memories, measure=False)
