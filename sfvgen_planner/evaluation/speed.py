"""How fast the world model imagines, and how long a plan takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.evaluation.measure import EvaluationConfig
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.tabletop import ENV_ID
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning import CEM, CEMConfig, MPCConfig, MPCPlanner, VideoPlanner
from sfvgen_planner.world_model import load_world_model

BATCH_SIZES = (1, 32, 256)
NUM_CANDIDATES = 32
NUM_ITERATIONS = 3


@dataclass(frozen=True)
class SpeedConfig(EvaluationConfig):
    """What is timed.

    Attributes:
        num_timed_runs: repetitions, after one that is not counted.
        num_inference_steps: denoiser calls per chunk.
    """

    num_timed_runs: int = 5
    num_inference_steps: int = 4


def measure_chunks(batch_size: int, config: SpeedConfig) -> Iterator[Figure]:
    """Action-conditioned chunks, from latents to decoded frames on the host."""
    model = load_world_model(config.model).to(config.device)
    num_frames = model.config.num_future_frames
    rng = np.random.default_rng(0)
    past = torch.randn(
        batch_size, *_window(model.latent_size, model.config.num_past_frames), device=model.device
    )
    actions = rng.uniform(-1, 1, (batch_size, num_frames, model.action_size)).astype(np.float32)

    def chunk() -> None:
        model(past, actions=actions, num_inference_steps=config.num_inference_steps)

    seconds = np.array(_timed(chunk, config, f"chunks, batch {batch_size}"))
    settings = {"model": config.model, "num_inference_steps": config.num_inference_steps}
    yield _figure(
        f"frames_per_second_b{batch_size}",
        batch_size * num_frames / seconds,
        "1/s",
        config,
        **settings,
    )
    if batch_size == 1:
        yield _figure("chunk_ms_b1", 1e3 * seconds, "ms", config, **settings)


def measure_plans(config: SpeedConfig) -> Iterator[Figure]:
    """A CEM plan to a goal image, and the video plan of a skill, from an episode's first frame."""
    model = load_world_model(config.model).to(config.device)
    env = ImaginationWrapper(make_env(ENV_ID, {"level": 1, "recall": "none"}), model)
    observation, info = env.reset(seed=config.seeds(1)[0])
    horizon = model.config.num_future_frames
    solver = CEM(CEMConfig(num_samples=NUM_CANDIDATES, num_iterations=NUM_ITERATIONS))
    # As in the demo: one step is enough to rank actions.
    cem = MPCPlanner(solver, config=MPCConfig(horizon=horizon, num_inference_steps=1))
    video = VideoPlanner.from_pretrained(config.model)
    video.inverse_dynamics.to(config.device)
    plans = {
        "plan_seconds": partial(cem.plan, env, observation["image"], seed=0),
        "video_plan_seconds": partial(video.plan, env, info["instruction"], seed=0),
    }
    where = torch.device(config.device).type
    for name, plan in plans.items():
        seconds = _timed(plan, config, name)
        yield _figure(f"{where}_{name}", seconds, "s", config, model=config.model)
    env.close()


FIGURES: dict[str, Callable[[SpeedConfig], Iterable[Figure]]] = {
    **{f"frames_per_second_b{size}": partial(measure_chunks, size) for size in BATCH_SIZES},
    "plan_seconds": measure_plans,
    "video_plan_seconds": measure_plans,
}
"""Figure to the measurement that it comes from; plans are named after the device's type."""


def _window(latent_size: tuple[int, int, int], num_frames: int) -> tuple[int, int, int, int]:
    channels, height, width = latent_size
    return channels, num_frames, height, width


def _timed(work: Callable[[], Any], config: SpeedConfig, what: str) -> list[float]:
    """Seconds of each run; the device has finished when a run ends, as frames come to the host."""
    work()
    seconds = []
    for _ in tqdm(range(config.num_timed_runs), desc=what, unit="run", dynamic_ncols=True):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def _figure(name: str, values: Any, unit: str, config: SpeedConfig, **fields: Any) -> Figure:
    """Repetitions stand where episodes stand in other figures."""
    return Figure.measured(name, values, unit, [0] * len(values), config.device, **fields)
