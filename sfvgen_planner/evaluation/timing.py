"""What all measurements of speed share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from sfvgen_planner.evaluation.measure import EvaluationConfig
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.world_model import VideoWorldModel, checkpoint_folder, load_world_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpeedConfig(EvaluationConfig):
    """What is timed.

    Attributes:
        num_timed_runs: repetitions, after one that is not counted.
        num_inference_steps: denoiser calls per chunk.
        training_batch_size: windows in a training step.
    """

    num_timed_runs: int = 5
    num_inference_steps: int = 4
    training_batch_size: int = 256

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return torch.device(self.device).type == "cuda"


def load_fast(config: SpeedConfig) -> tuple[VideoWorldModel, dict[str, Any]]:
    """The model as one would run it for speed, and the settings that a figure tells of it.

    On a GPU its weights are bfloat16 and it is compiled; on a CPU, where that is no gain worth its
    minutes of compilation, it stays as it is.
    """
    settings: dict[str, Any] = {"model": config.model}
    if not config.on_gpu:
        return load_world_model(config.model).to(config.device), settings
    folder = checkpoint_folder(config.model)
    model = VideoWorldModel.from_pretrained(folder, dtype=torch.bfloat16).to(config.device)
    model.compile()
    return model, {**settings, "precision": "bf16", "compiled": True}


def is_skipped(figures: str, config: SpeedConfig) -> bool:
    """Whether figures of a GPU are left out, which is told, because the device is none."""
    if not config.on_gpu:
        logger.warning(
            "%s skipped: measured on a GPU only, but the device is %s; give --device cuda on a "
            "machine with one",
            figures,
            config.device,
        )
    return not config.on_gpu


def seconds_of(work: Callable[[], Any], config: SpeedConfig) -> float:
    """Seconds until the device has finished the work."""
    started = time.perf_counter()
    work()
    if config.on_gpu:
        torch.cuda.synchronize(config.device)
    return time.perf_counter() - started


def timed(work: Callable[[], Any], config: SpeedConfig, what: str) -> list[float]:
    """Seconds of each run, until the device has finished; the first run does not count."""
    seconds_of(work, config)
    runs = range(config.num_timed_runs)
    progress = tqdm(runs, desc=what, unit="run", dynamic_ncols=True)
    return [seconds_of(work, config) for _ in progress]


def timing_figure(name: str, values: Any, unit: str, config: SpeedConfig, **fields: Any) -> Figure:
    """A figure with repetitions where other figures have episodes."""
    return Figure.measured(name, values, unit, [0] * len(values), config.device, **fields)
