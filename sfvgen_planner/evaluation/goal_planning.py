"""How often planning succeeds in any environment, against its expert and random actions.

It is planned from the environment's instruction, for the reward that the model foresees for it, or
towards a goal image: the last picture of the expert on the same seed, what a user would show the
robot, reachable by construction. Seeds on which the expert fails have no goal: they count for the
expert alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from sfvgen_policies import make_policy

from sfvgen_planner.data.environment import Environment, make_env
from sfvgen_planner.data.episode import Episode, EpisodeSource
from sfvgen_planner.data.rollout import record_episode
from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.evaluation.measure import EvaluationConfig, check_choices
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.rollout import play, play_side_by_side, play_spread, succeeded
from sfvgen_planner.evaluation.searches import check_num_candidates, plans_per_second, sized_cem
from sfvgen_planner.files import prepare_folder
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning import (
    LearnedDistance,
    MPCConfig,
    MPCPlanner,
    PlanningPolicy,
    PolicyConfig,
    TaskReward,
    VideoPlanner,
)
from sfvgen_planner.planning.plan import BatchPlanner
from sfvgen_planner.planning.policy import PlanRecord
from sfvgen_planner.world_model import checkpoint_folder, load_world_model
from sfvgen_planner.world_model.heads import load_heads

METHODS = ("video_plan", "mpc_reward", "mpc", "mpc_distance", "expert", "random")
"""A video of the instruction and its actions, searches for the instruction's reward, towards the
goal image and for the least temporal distance from it, and the bounds."""
_BY_DEFAULT = tuple(name for name in METHODS if name != "mpc_distance")
_SEARCHED_FOR = {
    "mpc_reward": "predicted reward",
    "mpc": "goal image",
    "mpc_distance": "temporal distance",
}
_SEEDS_PER_EPISODE = 4


@dataclass(frozen=True)
class GoalPlanningConfig(EvaluationConfig):
    """Where it is planned, and the size of the search.

    Attributes:
        env: Gymnasium id of what the model was trained in, also ``module:id``.
        env_kwargs: of `gymnasium.make`.
        methods: names of `METHODS`; by default all but `mpc_distance`, for which a model needs a
            temporal distance.
        num_planned_episodes: on which the expert succeeds, the same for each method.
        num_candidates: action sequences in each iteration of the search.
        num_iterations: of the search.
        num_inference_steps: denoiser calls for each imagined chunk.
        num_executed_steps: of a plan, before the next one is made.
        num_videos: episodes of each planner that are shown, as a video and as a film strip of
            imagined beside real frames, in ``videos/`` beside the result file.
    """

    env: str = ""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = _BY_DEFAULT
    num_planned_episodes: int = 50
    num_candidates: int = 64
    num_iterations: int = 4
    num_inference_steps: int = 1
    num_executed_steps: int = 4
    num_videos: int = 0

    def __post_init__(self) -> None:
        check_num_candidates(self.num_candidates)
        require(self.num_videos >= 0, f"num_videos must be at least 0, got {self.num_videos}")
        check_choices({"method": (self.methods, METHODS)})


def measure_goal_planning(config: GoalPlanningConfig) -> Iterator[Figure]:
    """Success in the last frame of an episode, and for planners plans per second."""
    require(bool(config.env), "name the environment that the model was trained in, with --env")
    if config.num_videos:
        # Missing, it is told before any work is spent.
        _videos()
        prepare_folder(config.folder / "videos")
    seen = load_world_model(config.model).config
    for name in config.methods:
        if name not in ("expert", "random"):
            # What the model lacks is told before anything is measured.
            _planner(name, config)
    with closing(make_env(config.env, config.env_kwargs, seen.frame_skip)) as env:
        outcomes = expert_outcomes(env, config, seen.image_size)
        goals = {seed: frame for seed, (success, frame) in outcomes.items() if success}
        fields = {"env": config.env, "env_kwargs": dict(config.env_kwargs)}
        for name in config.methods:
            if name == "expert":
                rates = [float(success) for success, _ in outcomes.values()]
                seeds, figures = list(outcomes), {"success_rate": rates}
            elif name == "random":
                episodes = play(env, make_policy(name, env), list(goals), name)
                rates = [float(succeeded(episode)) for episode in episodes]
                seeds, figures = list(goals), {"success_rate": rates}
            else:
                seeds, figures = list(goals), _planned(name, goals, config)
            settings = fields | _settings(name, config)
            for figure, values in figures.items():
                told = {"method": name, **settings}
                if figure == "plans_per_second" and config.num_envs > 1:
                    told["num_envs"] = config.num_envs
                yield Figure.measured(figure, values, UNITS[figure], seeds, config.device, **told)


def expert_outcomes(
    env: Environment, config: GoalPlanningConfig, image_size: int
) -> dict[int, tuple[bool, np.ndarray]]:
    """Seed to whether the expert succeeds and the last picture of its episode.

    As many seeds as it takes for ``num_planned_episodes`` successes.

    Raises:
        SfvgenError: there is no expert for this environment, or it fails too often.
    """
    try:
        expert = make_policy("expert", env)
    except ValueError as error:
        raise SfvgenError(f"the goal images come from an expert: {error}") from error
    outcomes: dict[int, tuple[bool, np.ndarray]] = {}
    num_goals = 0
    for seed in config.seeds(_SEEDS_PER_EPISODE * config.num_planned_episodes):
        episode = record_episode(env, expert, seed, EpisodeSource(), image_size)
        outcomes[seed] = succeeded(episode), episode.frames[-1]
        num_goals += succeeded(episode)
        if num_goals == config.num_planned_episodes:
            return outcomes
    raise SfvgenError(
        f"the expert of {config.env} succeeds in less than 1 of {_SEEDS_PER_EPISODE} episodes, "
        "which is too few for goal images"
    )


def _planned(
    name: str, goals: Mapping[int, np.ndarray], config: GoalPlanningConfig
) -> dict[str, list[float]]:
    """Figure to one value per episode with a goal."""
    player = _Player(name, goals, config)
    rows = play_spread(player, list(goals), config.num_workers, name, config.num_envs)
    columns = zip(*rows, strict=True)
    return {figure: list(values) for figure, values in zip(UNITS, columns, strict=True)}


class _Player:
    """Plays one planner's episodes, by their seeds, and takes their figures."""

    def __init__(
        self, name: str, goals: Mapping[int, np.ndarray], config: GoalPlanningConfig
    ) -> None:
        self._name = name
        self._goals = goals
        self._config = config
        self._policies: list[PlanningPolicy] = []
        self._stack = ExitStack()

    def play(self, seeds: Sequence[int]) -> list[tuple[float, ...]]:
        """The values of `UNITS` of each episode."""
        if not self._policies:
            self._open()
        policies = self._policies[: len(seeds)]
        if self._name in ("mpc", "mpc_distance"):
            for policy, seed in zip(policies, seeds, strict=True):
                policy.goal = self._goals[seed]
        episodes = play_side_by_side(policies, seeds)
        shown = list(self._goals)[: self._config.num_videos]
        for episode, policy in zip(episodes, policies, strict=True):
            if episode.seed in shown:
                self._show(episode, policy.plans)
        return [
            (float(succeeded(episode)), *plans_per_second(policy))
            for episode, policy in zip(episodes, policies, strict=True)
        ]

    def _show(self, episode: Episode, plans: Sequence[PlanRecord]) -> None:
        """Write the pictures of one episode."""
        videos = _videos()
        imagined = videos.imagined_frames(episode.frames, plans)
        outcome = "succeeded" if succeeded(episode) else "failed"
        captions = [episode.instructions[0], *episode.instructions[:-1], outcome]
        name = f"{self._config.model_stem}_{self._name}_{episode.seed}.mp4"
        path = self._config.folder / "videos" / name
        videos.write_mp4(path, videos.side_by_side(imagined, episode.frames, captions))
        strip = path.with_suffix(".png")
        videos.write_film_strip(strip, imagined, episode.frames, captions)

    def _open(self) -> None:
        config = self._config
        model = load_world_model(config.model).to(config.device)
        planner, how = _planner(self._name, config)
        for _ in range(min(config.num_envs, len(self._goals))):
            env = make_env(config.env, config.env_kwargs, model.config.frame_skip)
            self._stack.callback(env.close)
            self._policies.append(PlanningPolicy(ImaginationWrapper(env, model), planner, how))

    def close(self) -> None:
        """Close the environments."""
        self._stack.close()
        self._policies = []


def _videos() -> ModuleType:
    """The module that draws, which needs packages of an extra."""
    try:
        return import_module("sfvgen_planner.evaluation.videos")
    except ImportError as error:
        raise SfvgenError(
            f"videos need {error.name}: pip install 'sfvgen-planner[report]'"
        ) from error


def _planner(name: str, config: GoalPlanningConfig) -> tuple[BatchPlanner, PolicyConfig]:
    """A planner, and when it plans again."""
    often = PolicyConfig(config.num_executed_steps, max_departure=None)
    if name == "video_plan":
        return VideoPlanner.from_pretrained(config.model), often
    search = MPCPlanner(
        sized_cem(config.num_candidates, config.num_iterations),
        config=MPCConfig(num_inference_steps=config.num_inference_steps),
    )
    if name == "mpc_reward":
        head = load_heads(checkpoint_folder(config.model)).outcome_head
        require(head is not None, f"{config.model} has no outcome head; leave out mpc_reward")
        assert head is not None
        search.objective = partial(TaskReward, head)
    if name == "mpc_distance":
        distance = load_heads(checkpoint_folder(config.model)).temporal_distance
        require(
            distance is not None, f"{config.model} has no temporal distance; leave out mpc_distance"
        )
        assert distance is not None
        search.objective = partial(LearnedDistance, distance)
    return search, often


def _settings(name: str, config: GoalPlanningConfig) -> dict[str, Any]:
    if name == "video_plan":
        return {"model": config.model, "objective": "instruction"}
    if name in ("expert", "random"):
        return {}
    return {
        "model": config.model,
        "objective": _SEARCHED_FOR[name],
        "num_candidates": config.num_candidates,
        "num_iterations": config.num_iterations,
    }


UNITS = {"success_rate": "1", "plans_per_second": "1/s"}

FIGURES: dict[str, Callable[[GoalPlanningConfig], Iterable[Figure]]] = dict.fromkeys(
    UNITS, measure_goal_planning
)
"""Figure to the measurement that it comes from: they all come from the same episodes."""
