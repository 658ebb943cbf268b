"""How often planning succeeds in any environment, against its expert and random actions.

It is planned from the environment's instruction, or towards a goal image: the last picture of the
expert on the same seed, what a user would show the robot, reachable by construction. Seeds on which
the expert fails have no goal: they count for the expert alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sfvgen_policies import Policy, make_policy

from sfvgen_planner.data.environment import Environment, make_env
from sfvgen_planner.data.episode import EpisodeSource
from sfvgen_planner.data.rollout import record_episode
from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.evaluation.measure import EvaluationConfig, check_choices
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.rollout import play, succeeded
from sfvgen_planner.evaluation.searches import check_num_candidates, plans_per_second, sized_cem
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning import (
    MPCConfig,
    MPCPlanner,
    PlanningPolicy,
    PolicyConfig,
    VideoPlanner,
)
from sfvgen_planner.world_model import VideoWorldModel, load_world_model

METHODS = ("video_plan", "mpc", "expert", "random")
"""A video of the instruction and its actions, a search towards the goal image, and the bounds."""
_SEEDS_PER_EPISODE = 4


@dataclass(frozen=True)
class GoalPlanningConfig(EvaluationConfig):
    """Where it is planned, and the size of the search.

    Attributes:
        env: Gymnasium id of what the model was trained in, also ``module:id``.
        env_kwargs: of `gymnasium.make`.
        methods: names of `METHODS`; all by default.
        num_planned_episodes: on which the expert succeeds, the same for each method.
        num_candidates: action sequences in each iteration of the search.
        num_iterations: of the search.
        num_inference_steps: denoiser calls for each imagined chunk.
        num_executed_steps: of a plan, before the next one is made.
    """

    env: str = ""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    num_planned_episodes: int = 50
    num_candidates: int = 64
    num_iterations: int = 4
    num_inference_steps: int = 1
    num_executed_steps: int = 4

    def __post_init__(self) -> None:
        check_num_candidates(self.num_candidates)
        check_choices({"method": (self.methods, METHODS)})


class PlanToGoals:
    """Plans to the goal image of each episode's seed.

    Args:
        policy: makes the plans.
        goals: seed to goal image ``(H, W, 3)`` uint8.
    """

    def __init__(self, policy: PlanningPolicy, goals: Mapping[int, np.ndarray]) -> None:
        self.policy = policy
        self._goals = goals

    def reset(self, seed: int | None = None) -> None:
        """Begin the episode of a seed that there is a goal for."""
        require(seed in self._goals, f"there is no goal image for the seed {seed}")
        assert seed is not None
        self.policy.goal = self._goals[seed]
        self.policy.reset(seed)

    def act(self, observation: Any, instruction: str) -> np.ndarray:
        """Return the next action ``(A,)``."""
        return self.policy.act(observation, instruction)


def measure_goal_planning(config: GoalPlanningConfig) -> Iterator[Figure]:
    """Success in the last frame of an episode, and for planners plans per second."""
    require(bool(config.env), "name the environment that the model was trained in, with --env")
    model = load_world_model(config.model).to(config.device)
    with closing(make_env(config.env, config.env_kwargs, model.config.frame_skip)) as env:
        outcomes = expert_outcomes(env, config, model.config.image_size)
        goals = {seed: frame for seed, (success, frame) in outcomes.items() if success}
        fields = {"env": config.env, "env_kwargs": dict(config.env_kwargs)}
        for name in config.methods or METHODS:
            if name == "expert":
                rates = [float(success) for success, _ in outcomes.values()]
                seeds, figures = list(outcomes), {"success_rate": rates}
            else:
                seeds, figures = list(goals), _values(name, env, model, goals, config)
            settings = fields | _settings(name, config)
            for figure, values in figures.items():
                yield Figure.measured(
                    figure, values, UNITS[figure], seeds, config.device, method=name, **settings
                )


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


def _values(
    name: str,
    env: Environment,
    model: VideoWorldModel,
    goals: Mapping[int, np.ndarray],
    config: GoalPlanningConfig,
) -> dict[str, list[float]]:
    """Figure to one value per episode with a goal."""
    if name == "random":
        episodes = play(env, make_policy(name, env), list(goals), name)
        return {"success_rate": [float(succeeded(episode)) for episode in episodes]}
    imagination = ImaginationWrapper(env, model)
    actor: Policy
    if name == "video_plan":
        actor = policy = PlanningPolicy(imagination, VideoPlanner.from_pretrained(config.model))
    else:
        how = PolicyConfig(config.num_executed_steps, max_departure=None)
        policy = PlanningPolicy(imagination, planner(config), how)
        actor = PlanToGoals(policy, goals)
    figures: dict[str, list[float]] = {"success_rate": [], "plans_per_second": []}
    for episode in play(imagination, actor, list(goals), name):
        figures["success_rate"].append(float(succeeded(episode)))
        figures["plans_per_second"] += plans_per_second(policy)
    return figures


def planner(config: GoalPlanningConfig) -> MPCPlanner:
    """CEM in the world model towards a goal image."""
    solver = sized_cem(config.num_candidates, config.num_iterations)
    return MPCPlanner(solver, config=MPCConfig(num_inference_steps=config.num_inference_steps))


def _settings(name: str, config: GoalPlanningConfig) -> dict[str, Any]:
    if name == "video_plan":
        return {"model": config.model, "objective": "instruction"}
    if name != "mpc":
        return {}
    return {
        "model": config.model,
        "objective": "goal image",
        "num_candidates": config.num_candidates,
        "num_iterations": config.num_iterations,
    }


UNITS = {"success_rate": "1", "plans_per_second": "1/s"}

FIGURES: dict[str, Callable[[GoalPlanningConfig], Iterable[Figure]]] = dict.fromkeys(
    UNITS, measure_goal_planning
)
"""Figure to the measurement that it comes from: they all come from the same episodes."""
