"""The demo: episodes planned with an imagined video, memory on and off, on the same seeds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.data.episode import Episode
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation.measure import check_env
from sfvgen_planner.evaluation.provenance import command_line, git_commit, machine, peak_memory_mb
from sfvgen_planner.evaluation.report import write_report
from sfvgen_planner.evaluation.rollout import play, succeeded
from sfvgen_planner.evaluation.statistics import Estimate
from sfvgen_planner.evaluation.tabletop import (
    ENV_ID,
    moves_succeeded,
    recall_distance_m,
    waypoint_distance_m,
)
from sfvgen_planner.evaluation.videos import (
    imagined_frames,
    side_by_side,
    write_film_strip,
    write_mp4,
)
from sfvgen_planner.files import prepare_folder, write_json
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.memory import EpisodicMemory, MemoryWrite
from sfvgen_planner.planning import (
    CEM,
    CEMConfig,
    MPCConfig,
    MPCPlanner,
    PlanningPolicy,
    VideoPlanner,
)
from sfvgen_planner.planning.policy import PlanRecord
from sfvgen_planner.world_model import load_world_model

ARMS = ("memory_off", "memory_on")


@dataclass(frozen=True)
class DemoConfig:
    """What the demo runs.

    Attributes:
        out: folder of its files.
        model: shipped name, checkpoint folder or Hub id.
        num_episodes: episodes per arm.
        level: of the environment, 1 to 4.
        seed: of the first episode; training recipes stay below 100,000.
        cem: solver of the goal-image plan.
    """

    out: Path
    model: str = "tabletop_memory"
    num_episodes: int = 4
    level: int = 1
    seed: int = 100_000
    cem: CEMConfig = field(
        default_factory=lambda: CEMConfig(
            num_samples=32, num_elites=6, num_iterations=4, num_kept_elites=3
        )
    )

    def __post_init__(self) -> None:
        if self.num_episodes < 1:
            raise SfvgenError(f"the demo needs at least 1 episode, got {self.num_episodes}")
        if not 1 <= self.level <= 4:
            raise SfvgenError(f"the level must be from 1 to 4, got {self.level}")
        if self.seed < 0:
            raise SfvgenError(f"the seed must not be negative, got {self.seed}")

    @property
    def seeds(self) -> range:
        """One seed per episode."""
        return range(self.seed, self.seed + self.num_episodes)


@dataclass(frozen=True, eq=False)
class PlannedEpisode:
    """An episode, the plans made in it and the writes of its memory."""

    episode: Episode
    plans: list[PlanRecord]
    memory_writes: list[MemoryWrite]


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Run the demo and write ``summary.json``, ``report.html``, videos and a poster.

    Returns:
        The content of ``summary.json``.

    Raises:
        SfvgenError: the folder cannot be written to, or the model cannot be loaded.
    """
    started = time.perf_counter()
    prepare_folder(config.out)
    check_env(config.model, ENV_ID)
    model = load_world_model(config.model)
    planner = VideoPlanner.from_pretrained(config.model)
    env = make_env(ENV_ID, {"level": config.level, "recall": "first"})
    memory = EpisodicMemory.from_pretrained(model, config.model)
    arms: dict[str, list[PlannedEpisode]] = {}
    for arm in ARMS:
        memory.enabled = arm == "memory_on"
        imagination = ImaginationWrapper(env, model, memory if memory.enabled else None)
        arms[arm] = _plan_episodes(imagination, planner, config.seeds, arm.replace("_", " "))
    memory.reset()
    memory.enabled = False
    goal_image = _goal_image_plan(ImaginationWrapper(env, model), arms["memory_off"][0], config)
    env.close()
    videos = _write_pictures(config.out, arms)
    plans = [record for played in arms.values() for one in played for record in one.plans]
    writes = [write for one in arms["memory_on"] for write in one.memory_writes]
    summary = {
        **{arm: _summarise(played) for arm, played in arms.items()},
        "paired_difference_m": _paired_difference(arms),
        "goal_image": goal_image,
        "level": config.level,
        "recall": "first",
        "seconds_per_plan": float(np.mean([record.seconds for record in plans])),
        "seconds_per_memory_write": float(np.mean([w.seconds for w in writes])) if writes else None,
        "peak_memory_mb": peak_memory_mb(),
        "model": config.model,
        "git_commit": git_commit(),
        "command": command_line(),
        "machine": machine(model.device),
        "videos": videos,
        "seconds": time.perf_counter() - started,
    }
    write_json(config.out / "summary.json", summary)
    write_report(config.out, summary)
    return summary


def _plan_episodes(
    imagination: ImaginationWrapper, planner: VideoPlanner, seeds: Sequence[int], description: str
) -> list[PlannedEpisode]:
    policy = PlanningPolicy(imagination, planner)
    return [
        PlannedEpisode(episode, policy.plans, imagination.memory_writes)
        for episode in play(imagination, policy, seeds, description)
    ]


def _goal_image_plan(
    imagination: ImaginationWrapper, example: PlannedEpisode, config: DemoConfig
) -> dict[str, Any]:
    """Plan the way to a picture that the camera took one chunk into an episode, and take it."""
    real = example.episode
    # Two actions, each held for half a chunk: few numbers, so that few candidates suffice.
    block = max(1, imagination.world_model.config.num_future_frames // 2)
    horizon = 2 * block
    moment = min(horizon, len(real))
    goal, goal_gripper = real.frames[moment], _gripper(real.proprio, moment)
    planner = MPCPlanner(
        CEM(config.cem),
        config=MPCConfig(horizon=horizon, action_block=block, num_inference_steps=1),
    )
    imagination.reset(seed=real.seed)
    started = time.perf_counter()
    with tqdm(total=1, desc="goal image (CEM)", unit="plan", dynamic_ncols=True) as progress:
        plan = planner.plan(imagination, goal, seed=real.seed)
        progress.update()
    seconds = time.perf_counter() - started
    for action in plan.actions:
        observation, _, terminated, truncated, _ = imagination.step(action)
        if terminated or truncated:
            break
    start_gripper = _gripper(real.proprio, 0)
    reached = np.asarray(observation["proprio"])[:3]
    return {
        "seed": real.seed,
        "horizon": horizon,
        "seconds": seconds,
        "num_evaluations": plan.diagnostics["num_evaluations"],
        "cost": plan.cost,
        "gripper_distance_before_m": float(np.linalg.norm(start_gripper - goal_gripper)),
        "gripper_distance_after_m": float(np.linalg.norm(reached - goal_gripper)),
    }


def _gripper(proprio: np.ndarray | None, moment: int) -> np.ndarray:
    if proprio is None:
        raise SfvgenError("the demo's environment must report where its gripper is")
    return proprio[moment, :3]


def _summarise(played: Sequence[PlannedEpisode]) -> dict[str, Any]:
    episodes = [one.episode for one in played]
    success = Estimate.of([float(succeeded(episode)) for episode in episodes])
    distances = [recall_distance_m(episode) for episode in episodes]
    distance = Estimate.of(distances)
    waypoints = Estimate.of([waypoint_distance_m(episode) for episode in episodes])
    return {
        "episodes": len(episodes),
        "seeds": [episode.seed for episode in episodes],
        "success_rate": success.mean,
        "mean_distance_m": distance.mean,
        "mean_waypoint_distance_m": waypoints.mean,
        "ci95": {
            "success_rate": success.ci95,
            "mean_distance_m": distance.ci95,
            "mean_waypoint_distance_m": waypoints.ci95,
        },
        "distance_m": distances,
        "moves_succeeded": [moves_succeeded(episode) for episode in episodes],
        "steps": [len(episode) for episode in episodes],
        "plans": sum(len(one.plans) for one in played),
    }


def _paired_difference(arms: dict[str, list[PlannedEpisode]]) -> dict[str, Any] | None:
    """Distance with the memory on minus off over the episodes that had something to return.

    An episode counts where the moves before the recall succeeded in both arms: a cube that was
    never moved already is where it should return to.
    """
    pairs = [
        (on.episode, off.episode)
        for on, off in zip(arms["memory_on"], arms["memory_off"], strict=True)
        if moves_succeeded(on.episode) and moves_succeeded(off.episode)
    ]
    if not pairs:
        return None
    estimate = Estimate.of([recall_distance_m(on) - recall_distance_m(off) for on, off in pairs])
    return {
        "mean": estimate.mean,
        "ci95": estimate.ci95,
        "episodes": len(pairs),
        "seeds": [on.seed for on, _ in pairs],
    }


def _write_pictures(out: Path, arms: dict[str, list[PlannedEpisode]]) -> list[dict[str, Any]]:
    """One video per episode and arm, and a poster of the first episode with the memory on."""
    videos = []
    for arm, played in arms.items():
        for one in played:
            episode = one.episode
            imagined = imagined_frames(episode.frames, one.plans)
            captions = [episode.instructions[0], *episode.instructions]
            name = f"{arm}_{episode.seed}.mp4"
            write_mp4(out / name, side_by_side(imagined, episode.frames, captions))
            videos.append({"file": name, "arm": arm, "seed": episode.seed})
            if arm == "memory_on" and one is played[0]:
                write_film_strip(out / "poster.png", imagined, episode.frames, captions)
    return videos
