"""What memories cost: time, a GPU's memory, and the size of what an episode keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from sfvgen_planner.evaluation.base_model_speed import build_base_model
from sfvgen_planner.evaluation.memory_config import MANY_STEPS, MemoryConfig
from sfvgen_planner.evaluation.memory_variants import OURS, Variant, attached
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.memory import MEMORY_VARIANTS, EpisodicMemory, trained_config
from sfvgen_planner.world_model import VideoWorldModel, load_world_model
from sfvgen_planner.world_model.checkpoint import quiet_libraries
from sfvgen_planner.world_model.gradient_checkpointing import enable_gradient_checkpointing

NUM_BATCHED = 16
BASE_MODEL = "text-to-video-ms-1.7b's architecture, random weights"
_INSTRUCTION = "return the red cube"


def measure_cost(config: MemoryConfig) -> Iterator[Figure]:
    """What fast learning adds to the generation of a chunk, in time and memory."""
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
    if torch.device(config.device).type == "cuda":
        del model
        yield from measure_base_model_cost(config)


def measure_base_model_cost(config: MemoryConfig) -> Iterator[Figure]:
    """The same for a model of the paper's size (section 3.2's figures), with random weights.

    The memories have the settings that they have on the small model; their writes go without most
    of the activations, which at this size would need many times a sample's memory.
    """
    model = build_base_model(config.device)
    enable_gradient_checkpointing(model.unet)
    with quiet_libraries():
        model.to(torch.bfloat16)
    plain = _cost(partial(_generate, model, None, MANY_STEPS, config), config)
    for name, variant in _distinct_memories(config).items():
        assert variant.memory is not None
        trained = trained_config(config.model) if name == OURS else None
        memory = EpisodicMemory(model, trained or MEMORY_VARIANTS[variant.memory])
        work = partial(_generate_and_learn, model, memory, MANY_STEPS, config)
        cost = _cost(work, config)
        memory.detach()
        for figure, values in _overheads(plain, cost).items():
            yield _cost_figure(figure, values, name, MANY_STEPS, config, BASE_MODEL)


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
    name: str,
    values: np.ndarray,
    variant: str,
    num_inference_steps: int,
    config: MemoryConfig,
    model: str | None = None,
) -> Figure:
    return Figure.measured(
        name,
        values,
        "1",
        [0] * len(values),
        config.device,
        variant=variant,
        model=model or config.model,
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
