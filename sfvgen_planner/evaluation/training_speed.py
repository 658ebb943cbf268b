"""How much of a GPU's arithmetic slow learning uses, and what takes the rest."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile, schedule
from torch.utils.flop_counter import FlopCounterMode

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.timing import SpeedConfig, is_skipped, timing_figure
from sfvgen_planner.files import write_text
from sfvgen_planner.world_model import VideoWorldModel, load_world_model
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.recipe import Optimisation, WorldModelRecipe
from sfvgen_planner.world_model.slow_learning import SlowBatch, SlowObjective, slow_batches
from sfvgen_planner.world_model.stages import prepare_denoiser
from sfvgen_planner.world_model.trainer import LOG_EVERY, begin_training, train

PROFILE_FILE = "training_profile.txt"

PEAK_BF16_TFLOPS = {
    "A100": 312.0,
    "B200": 2250.0,
    "H100": 989.0,
    "H100 PCIe": 756.0,
    "H200": 989.0,
    "L4": 121.0,
    "L40S": 362.0,
    "RTX 3090": 71.0,
    "RTX 4090": 165.0,
}
"""Dense bf16 matrix products with fp32 sums, by the makers' data sheets [10^12 / s]."""

_PROFILED_STEPS = 3
_STEPS_BEFORE = 5

# What a GPU's kernel does, by its name; the first that fits counts.
_KERNELS = {
    "memory copies and layout changes": r"mem(cpy|set)|nchwToNhwc|nhwcToNchw|transpose|copy",
    "convolutions": r"conv|fprop|dgrad|wgrad|cudnn",
    "matrix products": r"gemm|nvjet|cutlass|cublas|bmm|splitK",
    "attention": r"flash|fmha|attention",
    "fused elementwise, norms and softmax": r"triton",
    "optimiser and averaged weights": r"multi_tensor|adam",
}
_OTHER = "other kernels"


def measure_training(config: SpeedConfig) -> Iterator[Figure]:
    """Model FLOPs utilisation of the trainer on a GPU; its profile goes next to the result file.

    Raises:
        SfvgenError: The GPU's peak is not known.
    """
    if is_skipped("training_mfu", config):
        return
    peak = peak_bf16_flops(torch.cuda.get_device_name(config.device))
    speed = TrainingSpeed(load_world_model(config.model), config)
    rates = speed.samples_per_second()
    step_seconds = config.training_batch_size * len(rates) / sum(rates)
    summary = speed.profile(step_seconds)
    write_text(config.folder / PROFILE_FILE, summary)
    yield timing_figure(
        "training_mfu",
        [rate * speed.flops_per_sample / peak for rate in rates],
        "1",
        config,
        model=config.model,
        batch_size=config.training_batch_size,
        precision="bf16",
        profile=PROFILE_FILE,
    )


class TrainingSpeed:
    """The trainer of slow learning on random latents, with the sizes of a trained model.

    Args:
        model: Gives the sizes; it is trained.
        config: The device, the batch and how often.
        capture: Run steps as CUDA graphs in place of compiling them.

    Attributes:
        flops_per_sample: Floating-point operations of the model's forward and backward pass on
            one window, an addition and a multiplication each counted.
    """

    def __init__(self, model: VideoWorldModel, config: SpeedConfig, capture: bool = False) -> None:
        self._config = config
        self._capture = capture
        self._accelerator = begin_training(0, "bf16" if config.on_gpu else "no")
        self._model = model.to(self._accelerator.device)
        self._table = _random_table(self._model)
        self._objective = SlowObjective(self._model)
        prepare_denoiser(model.unet, self._recipe(1), self._accelerator.device)
        self.flops_per_sample = self._count_flops()

    def samples_per_second(self) -> list[float]:
        """Windows a second as the trainer logs them, without its first, compiling steps.

        Of several processes together, which must all call this; only the main one knows.
        """
        steps = LOG_EVERY * (1 + self._config.num_timed_runs)
        with tempfile.TemporaryDirectory() as folder:
            self._train(steps, Path(folder), lambda: None)
            if not self._accelerator.is_main_process:
                return []
            lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["samples_per_second"] for line in lines[1:]]

    def profile(self, step_seconds: float) -> str:
        """A table of what takes the time of a training step.

        Args:
            step_seconds: Of a step that is not profiled.
        """
        activities = [ProfilerActivity.CPU]
        if self._config.on_gpu:
            activities.append(ProfilerActivity.CUDA)
        tables: list[str] = []

        def tell(profiler: profile) -> None:
            tables.append(_summary(profiler.key_averages(), step_seconds, self._config.on_gpu))

        with (
            profile(
                activities=activities,
                schedule=schedule(wait=_STEPS_BEFORE, warmup=1, active=_PROFILED_STEPS, repeat=1),
                on_trace_ready=tell,
            ) as profiler,
            tempfile.TemporaryDirectory() as folder,
        ):
            self._train(_STEPS_BEFORE + _PROFILED_STEPS + 3, Path(folder), profiler.step)
        return tables[0]

    def _train(self, steps: int, folder: Path, before_step: Callable[[], None]) -> None:
        recipe = self._recipe(steps)
        draw = slow_batches(self._table, self._model, recipe)

        def draw_batch(generator: torch.Generator) -> SlowBatch:
            before_step()
            return draw(generator)

        train(
            self._objective,
            draw_batch,
            recipe.optimisation,
            folder,
            self._accelerator,
            seed=0,
            description="training steps",
        )

    def _recipe(self, steps: int, batch_size: int | None = None) -> WorldModelRecipe:
        return WorldModelRecipe(
            num_past_frames=self._model.config.num_past_frames,
            num_future_frames=self._model.config.num_future_frames,
            compile=not self._capture,
            optimisation=Optimisation(
                steps=steps,
                capture=self._capture,
                batch_size=batch_size or self._config.training_batch_size,
                learning_rate=1e-5,
                checkpoint_every=steps,
            ),
        )

    def _count_flops(self) -> float:
        draw = slow_batches(self._table, self._model, self._recipe(1, batch_size=1))
        generator = torch.Generator(self._accelerator.device).manual_seed(0)
        with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
            self._objective(*draw(generator)).backward()
        self._objective.zero_grad(set_to_none=True)
        return float(counter.get_total_flops())


def peak_bf16_flops(gpu: str) -> float:
    """Peak of bf16 matrix products of a GPU of this name [FLOP/s].

    Raises:
        SfvgenError: It is not known.
    """
    # The longest name first: an L40S is no L4.
    for known in sorted(PEAK_BF16_TFLOPS, key=len, reverse=True):
        if f" {known}" in f" {gpu}":
            return 1e12 * PEAK_BF16_TFLOPS[known]
    raise SfvgenError(
        "training_mfu needs the peak arithmetic of the GPU, which is known for "
        f"{', '.join(PEAK_BF16_TFLOPS)}, not for {gpu}"
    )


def _random_table(model: VideoWorldModel, num_episodes: int = 64) -> FrameTable:
    """Latents and actions of episodes that follow one instruction each."""
    device = model.device
    length = 4 * (model.config.num_past_frames + model.config.num_future_frames)
    elapsed = torch.arange(length, device=device).repeat(num_episodes)
    rows = num_episodes * length
    return FrameTable(
        frames=torch.randn(rows, *model.latent_size, device=device).half(),
        actions=2 * torch.rand(rows, model.action_size, device=device) - 1,
        instruction_ids=torch.ones_like(elapsed),
        remaining=length - 1 - elapsed,
        elapsed=elapsed,
        rewards=torch.zeros(rows, device=device),
        successes=torch.zeros(rows, dtype=torch.int8, device=device),
        instructions=["", "put the red cube on the blue pad"],
    )


def _summary(events: EventList, step_seconds: float, on_gpu: bool) -> str:
    """Shares of a step's time by kind of kernel, then the costliest kernels."""
    sort_by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = events.table(
        sort_by=sort_by, row_limit=15, max_name_column_width=70, max_src_column_width=0
    )
    lines = [f"A training step takes {1e3 * step_seconds:.1f} ms, by kind of kernel:"]
    if on_gpu:
        shares = _shares(events, step_seconds)
        lines += [f"{share:6.1%}  {kind}" for kind, share in shares.items()]
        lines.append(f"{max(1 - sum(shares.values()), 0):6.1%}  the GPU waits for the CPU")
    return "\n".join([*lines, f"\nCostliest in {_PROFILED_STEPS} steps:", str(table), ""])


def _shares(events: Any, step_seconds: float) -> dict[str, float]:
    """Share of the step that each kind of kernel takes on the GPU, largest first."""
    seconds = dict.fromkeys([*_KERNELS, _OTHER], 0.0)
    for event in events:
        # Annotations span kernels that are counted by themselves.
        if event.device_type.name != "CUDA" or event.is_user_annotation:
            continue
        kind = next((k for k, name in _KERNELS.items() if re.search(name, event.key, re.I)), _OTHER)
        seconds[kind] += event.self_device_time_total / 1e6 / _PROFILED_STEPS
    ranked = sorted(seconds.items(), key=lambda item: -item[1])
    return {kind: value / step_seconds for kind, value in ranked}
