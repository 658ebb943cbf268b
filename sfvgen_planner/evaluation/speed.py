"""How fast the world model imagines and trains, and how long a plan takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.evaluation.base_model_speed import measure_base_model
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.tabletop import ENV_ID
from sfvgen_planner.evaluation.timing import SpeedConfig, load_fast, timed, timing_figure
from sfvgen_planner.evaluation.training_speed import measure_training
from sfvgen_planner.imagination import ImaginationWrapper, Start, WorldModelVectorEnv
from sfvgen_planner.planning import CEM, CEMConfig, MPCConfig, MPCPlanner, VideoPlanner
from sfvgen_planner.world_model import VideoWorldModel

BATCH_SIZES = (1, 32, 256)
NUM_CANDIDATES = 32
NUM_ITERATIONS = 3
NUM_ENVS = 64
LONG_HORIZON = 1_000_000
"""Steps that no measurement reaches: an episode's end would be timed too."""


def imagining(
    model: VideoWorldModel, batch_size: int, num_inference_steps: int
) -> Callable[[], object]:
    """Action-conditioned chunks of so many worlds, from latents to decoded frames on the host."""
    num_frames = model.config.num_future_frames
    channels, height, width = model.latent_size
    past = torch.randn(
        batch_size,
        channels,
        model.config.num_past_frames,
        height,
        width,
        device=model.device,
    )
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (batch_size, num_frames, model.action_size)).astype(np.float32)
    generator = torch.Generator(model.device).manual_seed(0)
    return partial(
        model,
        past,
        actions=actions,
        num_inference_steps=num_inference_steps,
        generator=generator,
    )


def measure_chunks(batch_size: int, config: SpeedConfig) -> Iterator[Figure]:
    """Chunks as `imagining` makes them."""
    model, settings = load_fast(config)
    settings |= {"num_inference_steps": config.num_inference_steps}
    chunk = imagining(model, batch_size, config.num_inference_steps)
    seconds = np.array(timed(chunk, config, f"chunks, batch {batch_size}"))
    yield timing_figure(
        f"frames_per_second_b{batch_size}",
        batch_size * model.config.num_future_frames / seconds,
        "1/s",
        config,
        **settings,
    )
    if batch_size == 1:
        yield timing_figure("chunk_ms_b1", 1e3 * seconds, "ms", config, **settings)


def measure_plans(config: SpeedConfig) -> Iterator[Figure]:
    """A CEM plan to a goal image, and the video plan of a skill, from an episode's first frame."""
    model, settings = load_fast(config)
    env = ImaginationWrapper(make_env(ENV_ID, {"level": 1, "recall": "none"}), model)
    observation, info = env.reset(seed=config.seeds(1)[0])
    horizon = model.config.num_future_frames
    solver = CEM(CEMConfig(num_samples=NUM_CANDIDATES, num_iterations=NUM_ITERATIONS))
    # As in the demo: one step is enough to rank actions.
    cem = MPCPlanner(solver, config=MPCConfig(horizon=horizon, num_inference_steps=1))
    video = VideoPlanner.from_pretrained(config.model)
    plans = {
        "plan_seconds": partial(cem.plan, env, observation["image"], seed=0),
        "video_plan_seconds": partial(video.plan, env, info["instruction"], seed=0),
    }
    where = torch.device(config.device).type
    for name, plan in plans.items():
        seconds = timed(plan, config, name)
        yield timing_figure(f"{where}_{name}", seconds, "s", config, **settings)
    env.close()


def measure_vector_env(config: SpeedConfig) -> Iterator[Figure]:
    """A step of many imagined worlds in one batch against as many steps of one world."""
    model, settings = load_fast(config)
    side = model.config.image_size
    past = np.zeros((model.config.num_past_frames, side, side, 3), np.uint8)
    seconds = {}
    for num_envs in (1, NUM_ENVS):
        worlds = WorldModelVectorEnv(model, lambda rng: Start(past), num_envs, horizon=LONG_HORIZON)
        worlds.reset(seed=0)
        worlds.action_space.seed(0)
        step = partial(worlds.step, worlds.action_space.sample())
        seconds[num_envs] = np.array(timed(step, config, f"steps of {num_envs} worlds"))
    yield timing_figure(
        "vector_env_speedup",
        NUM_ENVS * seconds[1].mean() / seconds[NUM_ENVS],
        "1",
        config,
        num_envs=NUM_ENVS,
        num_inference_steps=1,
        **settings,
    )


FIGURES: dict[str, Callable[[SpeedConfig], Iterable[Figure]]] = {
    **{f"frames_per_second_b{size}": partial(measure_chunks, size) for size in BATCH_SIZES},
    "plan_seconds": measure_plans,
    "video_plan_seconds": measure_plans,
    "vector_env_speedup": measure_vector_env,
    "training_mfu": measure_training,
    "modelscope_train_step_seconds": measure_base_model,
    "modelscope_peak_gb": measure_base_model,
    "modelscope_chunk_seconds": measure_base_model,
}
"""Figure to the measurement that it comes from; plans are named after the device's type."""
