"""The main job in figures: does the planner move cubes, and does the model heed its actions?"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sfvgen_policies import make_policy
from tqdm import tqdm

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.data.episode import Episode
from sfvgen_planner.evaluation.chunks import (
    Chunks,
    figures_by_policy,
    gripper_error_px,
    imagine_frames,
    policy_episodes,
)
from sfvgen_planner.evaluation.demo import DemoConfig
from sfvgen_planner.evaluation.measure import EvaluationConfig
from sfvgen_planner.evaluation.metrics import psnr_db
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.rollout import play, succeeded
from sfvgen_planner.evaluation.searches import WHOLE_CHUNKS
from sfvgen_planner.evaluation.tabletop import ENV_ID
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning import PlanningPolicy, VideoPlanner
from sfvgen_planner.world_model import VideoWorldModel, load_world_model

SKILL: dict[str, Any] = {"level": 1, "recall": "none"}
HARDEST: dict[str, Any] = {"level": 4}
RECALLS = ("first", "previous")
ACTION_EPISODES: dict[str, Any] = {"level": 2, "recall": "first"}


@dataclass(frozen=True)
class MainJobConfig(EvaluationConfig):
    """Size of the evaluation.

    Attributes:
        num_skill_episodes: episodes of the planner and of the random policy.
        num_expert_episodes: episodes of the expert, for each kind of recall.
        num_action_episodes: episodes of each policy that action-conditioned chunks come from.
        num_speed_episodes: episodes that the environment's speed is measured on.
        num_demo_runs: runs of ``sfvgen demo``.
        num_inference_steps: denoiser calls per action-conditioned chunk.
    """

    env_id = ENV_ID
    num_skill_episodes: int = 100
    num_expert_episodes: int = 200
    num_action_episodes: int = 32
    num_speed_episodes: int = 20
    num_demo_runs: int = 3
    num_inference_steps: int = 2


def measure_skill(config: MainJobConfig) -> Iterator[Figure]:
    """Share of single moves that the video planner achieves; there is nothing to remember yet."""
    model = load_world_model(config.model).to(config.device)
    planner = VideoPlanner.from_pretrained(config.model)
    env = ImaginationWrapper(make_env(ENV_ID, SKILL), model)
    policy = PlanningPolicy(env, planner, WHOLE_CHUNKS)
    seeds = config.seeds(config.num_skill_episodes)
    episodes = list(play(env, policy, seeds, "planner"))
    env.close()
    yield _success_rate(
        "skill_success_rate", episodes, config.device, memory=False, model=config.model, **SKILL
    )


def measure_random_skill(config: MainJobConfig) -> Iterator[Figure]:
    """The same episodes with the random policy."""
    env = make_env(ENV_ID, SKILL)
    seeds = config.seeds(config.num_skill_episodes)
    episodes = list(play(env, make_policy("random", env), seeds, "random policy"))
    env.close()
    yield _success_rate("skill_success_rate_random", episodes, **SKILL)


def measure_expert(config: MainJobConfig) -> Iterator[Figure]:
    """Share of the hardest episodes in which the expert achieves every instruction."""
    for recall in RECALLS:
        env = make_env(ENV_ID, {**HARDEST, "recall": recall})
        seeds = config.seeds(config.num_expert_episodes)
        policy = make_policy("expert", env)
        episodes = list(play(env, policy, seeds, f"expert, recall {recall}"))
        env.close()
        yield _success_rate("expert_success_rate", episodes, recall=recall, **HARDEST)


def measure_actions(config: MainJobConfig) -> Iterator[Figure]:
    """Quality of action-conditioned chunks against the simulator, and whether actions matter."""
    model = load_world_model(config.model).to(config.device)
    seeds = config.seeds(config.num_action_episodes)
    episodes, policies = policy_episodes(ACTION_EPISODES, seeds)
    chunks = Chunks.cut(episodes, model.config.num_past_frames, model.config.num_future_frames)
    imagined = _imagine(model, chunks, chunks.actions, config, "chunks")
    shuffled = chunks.actions[chunks.shuffled()]
    misled = _imagine(model, chunks, shuffled, config, "chunks, shuffled actions")
    still = np.repeat(chunks.past[:, -1:], chunks.future.shape[1], axis=1)
    model_db, still_db = psnr_db(imagined, chunks.future), psnr_db(still, chunks.future)
    end = chunks.future[:, -1]
    values = {
        "action_psnr_gain_db": (model_db - still_db, "dB"),
        "imagined_psnr_db": (model_db, "dB"),
        "copied_last_frame_psnr_db": (still_db, "dB"),
        "gripper_error_px": (gripper_error_px(imagined[:, -1], end), "px of 64"),
        "gripper_error_px_shuffled_actions": (gripper_error_px(misled[:, -1], end), "px of 64"),
    }
    for name, (per_chunk, unit) in values.items():
        per_episode = chunks.episode_means(per_chunk)
        settings = {
            "chunks": len(chunks.past),
            "num_inference_steps": config.num_inference_steps,
            **ACTION_EPISODES,
        }
        yield from figures_by_policy(
            name, per_episode, unit, episodes, policies, config, **settings
        )


def measure_env_speed(config: MainJobConfig) -> Iterator[Figure]:
    """Camera steps per second of CPU time of the environment, episode by episode."""
    env = make_env(ENV_ID, HARDEST)
    policy = make_policy("random", env)
    speeds = []
    seeds = config.seeds(config.num_speed_episodes)
    for seed in tqdm(seeds, desc="environment speed", unit="episode", dynamic_ncols=True):
        policy.reset(seed)
        observation, info = env.reset(seed=seed)
        actions = [policy.act(observation, info["instruction"]) for _ in range(200)]
        # The process's own time over all its threads, so that other load hardly matters.
        done, num_steps, started = False, 0, time.process_time()
        while not done and num_steps < len(actions):
            _, _, terminated, truncated, _ = env.step(actions[num_steps])
            done = terminated or truncated
            num_steps += 1
        speeds.append(num_steps / (time.process_time() - started))
    env.close()
    yield Figure.measured(
        "env_frames_per_second", speeds, "1/s", seeds, processes=1, image_size=64, **HARDEST
    )


def measure_demo(config: MainJobConfig) -> Iterator[Figure]:
    """Seconds of a whole ``sfvgen demo`` as ``make demo`` runs it, start of Python included."""
    seconds = []
    for _ in tqdm(range(config.num_demo_runs), desc="demo", unit="run", dynamic_ncols=True):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            demo = ["demo", "--out", folder]
            subprocess.run(
                [sys.executable, "-m", "sfvgen_planner", *demo], check=True, capture_output=True
            )
            seconds.append(time.perf_counter() - started)
    yield Figure.measured("demo_seconds", seconds, "s", [0] * len(seconds), model=DemoConfig.model)


FIGURES: dict[str, Callable[[MainJobConfig], Iterable[Figure]]] = {
    "skill_success_rate": measure_skill,
    "skill_success_rate_random": measure_random_skill,
    "expert_success_rate": measure_expert,
    "action_psnr_gain_db": measure_actions,
    "gripper_error_px": measure_actions,
    "gripper_error_px_shuffled_actions": measure_actions,
    "env_frames_per_second": measure_env_speed,
    "demo_seconds": measure_demo,
}
"""Figure to the measurement that it comes from."""


def _imagine(
    model: VideoWorldModel, chunks: Chunks, actions: np.ndarray, config: MainJobConfig, what: str
) -> np.ndarray:
    return imagine_frames(
        model,
        chunks.past,
        actions=actions,
        num_inference_steps=config.num_inference_steps,
        batch_size=config.batch_size,
        description=what,
    )


def _success_rate(
    name: str, episodes: Sequence[Episode], device: str = "cpu", **fields: Any
) -> Figure:
    values = [float(succeeded(episode)) for episode in episodes]
    return Figure.measured(name, values, "1", [e.seed for e in episodes], device, **fields)
