"""How well planners do the whole task: every method on the same episodes, memory on and off.

On one CPU core, 200 episodes of each of the 4 levels take about 4 hours with ``video_plan`` and 20
with ``mpc_cem`` or ``mpc_mppi``, 7 more with the paper's memory, 8 with ``mpc_simulator`` and a
quarter with ``expert`` or ``random``; those with the world model want a GPU and many episodes side
by side, many workers, or few episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from sfvgen_policies import Policy, make_policy

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.data.episode import EpisodeSource
from sfvgen_planner.data.rollout import record_episode
from sfvgen_planner.evaluation.measure import EvaluationConfig, check_choices
from sfvgen_planner.evaluation.memory_variants import OURS, REFERENCE, VARIANTS, attached
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.rollout import play_side_by_side, play_spread, succeeded
from sfvgen_planner.evaluation.searches import (
    WHOLE_CHUNKS,
    check_num_candidates,
    plans_per_second,
    sized_cem,
)
from sfvgen_planner.evaluation.tabletop import (
    ENV_ID,
    recall_distance_m,
    way_to_go_m,
    waypoint_distance_m,
)
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning import (
    MPPI,
    MPCConfig,
    MPCPlanner,
    MPPIConfig,
    PlanningPolicy,
    PolicyConfig,
    SearchConfig,
    SimulatorPlanner,
    Solver,
    SubgoalPlanner,
    VideoPlanConfig,
    VideoPlanner,
)
from sfvgen_planner.world_model import load_world_model

LEVELS = (1, 2, 3, 4)
RECALL = "first"
VIDEO = VideoPlanConfig()
SEARCH = MPCConfig(action_block=1)
SIMULATOR_SEARCH = SearchConfig(action_block=2)


@dataclass(frozen=True)
class PlanningConfig(EvaluationConfig):
    """What is compared, and the size of the searches.

    Attributes:
        num_planned_episodes: episodes of each method, level and memory; all on the same seeds.
        methods: names of `METHODS`; all by default.
        levels: of the environment.
        num_candidates: action sequences in each iteration of a search in the world model.
        num_iterations: of a search in the world model.
        initial_std: likewise, around the actions read off the video.
        temperature: of MPPI, in units of the distance to the goal image.
        num_executed_steps: of a plan that was searched in the world model; where it was searched
            in the simulator, it is one block.
        num_simulator_candidates: action sequences in each iteration of a search in the simulator.
        num_simulator_iterations: of a search in the simulator.
    """

    env_id = ENV_ID
    num_planned_episodes: int = 200
    methods: tuple[str, ...] = ()
    levels: tuple[int, ...] = LEVELS
    num_candidates: int = 16
    num_iterations: int = 2
    initial_std: float = 0.05
    temperature: float = 0.05
    num_executed_steps: int = 8
    num_simulator_candidates: int = 48
    num_simulator_iterations: int = 4

    def __post_init__(self) -> None:
        check_num_candidates(self.num_candidates, self.num_simulator_candidates)
        check_choices({"method": (self.methods, tuple(METHODS)), "level": (self.levels, LEVELS)})


@dataclass(frozen=True)
class Method:
    """How an environment is acted in.

    Attributes:
        make: policies for as many environments.
        settings: what the figures tell of it.
        imagines: it plans in the world model: a memory can help, and episodes side by side share
            its calls. Others are played one by one.
    """

    make: Callable[[Sequence[ImaginationWrapper], PlanningConfig], Sequence[Policy]]
    settings: Callable[[PlanningConfig], dict[str, Any]] = lambda config: {}
    imagines: bool = False

    def num_envs(self, config: PlanningConfig) -> int:
        """Episodes that are played side by side."""
        return config.num_envs if self.imagines else 1


def measure_planning(config: PlanningConfig) -> Iterator[Figure]:
    """Success of whole episodes, the metres that are left at their end, and plans per second.

    ``distance_m`` is the recall's alone, which is small too where the cube was never moved;
    ``waypoint_distance_m`` is the mean over all instructions. Where a method can use a memory, the
    differences that it makes on the same episodes follow. ``plans_per_second`` is how many plans an
    episode had over the seconds that they took; plans that were made together, for episodes side
    by side, share the seconds of their call equally, so it is the rate of all of them.
    """
    seeds = config.seeds(config.num_planned_episodes)
    for level, name in product(config.levels, config.methods or METHODS):
        method = METHODS[name]
        fields = {"env": ENV_ID, "method": name, "level": level, "recall": RECALL}
        fields |= method.settings(config)
        arms: dict[bool, dict[str, np.ndarray]] = {}
        for memory in (False, True) if method.imagines else (False,):
            arms[memory] = _values(name, level, memory, config)
            for figure, values in arms[memory].items():
                told = {"memory": memory, **fields}
                if figure == "plans_per_second" and method.num_envs(config) > 1:
                    told["num_envs"] = method.num_envs(config)
                yield Figure.measured(figure, values, UNITS[figure], seeds, config.device, **told)
        for figure in ("success_rate", "distance_m", "waypoint_distance_m"):
            if method.imagines:
                yield Figure.measured(
                    f"{figure}_difference",
                    arms[True][figure] - arms[False][figure],
                    UNITS[figure],
                    seeds,
                    config.device,
                    memory=True,
                    reference="memory=False",
                    **fields,
                )


def _values(name: str, level: int, memory: bool, config: PlanningConfig) -> dict[str, np.ndarray]:
    """Figure to one value per episode."""
    rows = play_spread(
        _MethodPlayer(name, level, memory, config),
        config.seeds(config.num_planned_episodes),
        config.num_workers,
        f"{name}, level {level}{', memory' if memory else ''}",
        METHODS[name].num_envs(config),
    )
    return dict(zip(UNITS, np.array(rows).T, strict=False))


class _MethodPlayer:
    """Plays one method's episodes, by their seeds, and takes their figures."""

    def __init__(self, name: str, level: int, memory: bool, config: PlanningConfig) -> None:
        self._name = name
        self._level = level
        self._memory = memory
        self._config = config
        self._opened: _Opened | None = None

    def play(self, seeds: Sequence[int]) -> list[tuple[float, ...]]:
        """The values of `UNITS` of each episode; without the last where there are no plans."""
        if self._opened is None:
            self._opened = self._open()
        envs, policies, _ = self._opened
        if METHODS[self._name].imagines:
            planning = [policy for policy in policies if isinstance(policy, PlanningPolicy)]
            episodes = play_side_by_side(planning, seeds)
        else:
            (seed,) = seeds
            episodes = [record_episode(envs[0], policies[0], seed, EpisodeSource())]
        return [
            (
                float(succeeded(episode)),
                recall_distance_m(episode),
                waypoint_distance_m(episode),
                *plans_per_second(policy),
            )
            for episode, policy in zip(episodes, policies, strict=False)
        ]

    def _open(self) -> _Opened:
        config, stack = self._config, ExitStack()
        # On a GPU; convolutions there have this precision anyway.
        torch.backends.cuda.matmul.allow_tf32 = True
        # Loaded anew, because a model has one memory at a time.
        model = load_world_model(config.model).to(config.device)
        variant = VARIANTS[OURS if self._memory else REFERENCE]
        method = METHODS[self._name]
        num_envs = min(method.num_envs(config), config.num_planned_episodes)
        memory = stack.enter_context(attached(variant, model, config.model, num_envs))
        envs = []
        for index in range(num_envs):
            env = make_env(ENV_ID, {"level": self._level, "recall": RECALL})
            stack.callback(env.close)
            envs.append(ImaginationWrapper(env, model, memory, memory_index=index))
        return _Opened(envs, method.make(envs, config), stack)

    def close(self) -> None:
        """Close the environment."""
        if self._opened is not None:
            self._opened.stack.close()
        self._opened = None


class _Opened(NamedTuple):
    envs: Sequence[ImaginationWrapper]
    policies: Sequence[Policy]
    stack: ExitStack


def _video_plan(envs: Sequence[ImaginationWrapper], config: PlanningConfig) -> list[Policy]:
    planner = VideoPlanner.from_pretrained(config.model, VIDEO)
    return [PlanningPolicy(env, planner, WHOLE_CHUNKS) for env in envs]


def _mpc(
    envs: Sequence[ImaginationWrapper], config: PlanningConfig, solver: Solver
) -> list[Policy]:
    planner = SubgoalPlanner(
        VideoPlanner.from_pretrained(config.model, VIDEO), MPCPlanner(solver, config=SEARCH)
    )
    return [PlanningPolicy(env, planner, PolicyConfig(config.num_executed_steps)) for env in envs]


def _mpc_cem(envs: Sequence[ImaginationWrapper], config: PlanningConfig) -> list[Policy]:
    sizes = (config.num_candidates, config.num_iterations)
    return _mpc(envs, config, sized_cem(*sizes, config.initial_std))


def _mpc_mppi(envs: Sequence[ImaginationWrapper], config: PlanningConfig) -> list[Policy]:
    sizes = (config.num_candidates, config.num_iterations)
    return _mpc(envs, config, MPPI(MPPIConfig(*sizes, config.temperature, config.initial_std)))


def _mpc_simulator(envs: Sequence[ImaginationWrapper], config: PlanningConfig) -> list[Policy]:
    solver = sized_cem(config.num_simulator_candidates, config.num_simulator_iterations)
    planner = SimulatorPlanner(way_to_go_m, solver, SIMULATOR_SEARCH)
    return [
        PlanningPolicy(env, planner, PolicyConfig(SIMULATOR_SEARCH.action_block)) for env in envs
    ]


def _video_settings(config: PlanningConfig) -> dict[str, Any]:
    return {"model": config.model, "num_candidates": VIDEO.num_samples}


def _mpc_settings(config: PlanningConfig) -> dict[str, Any]:
    sizes = {"num_candidates": config.num_candidates, "num_iterations": config.num_iterations}
    return {"model": config.model, "objective": "language subgoal", **sizes}


def _simulator_settings(config: PlanningConfig) -> dict[str, Any]:
    sizes = {"num_candidates": config.num_simulator_candidates}
    return sizes | {"num_iterations": config.num_simulator_iterations}


METHODS = {
    "video_plan": Method(_video_plan, _video_settings, imagines=True),
    "mpc_cem": Method(_mpc_cem, _mpc_settings, imagines=True),
    "mpc_mppi": Method(_mpc_mppi, _mpc_settings, imagines=True),
    "mpc_simulator": Method(_mpc_simulator, _simulator_settings),
    "expert": Method(lambda envs, _: [make_policy("expert", env) for env in envs]),
    "random": Method(lambda envs, _: [make_policy("random", env) for env in envs]),
}
"""Name to method; ``mpc_simulator`` bounds what MPC can do."""

UNITS = {
    "success_rate": "1",
    "distance_m": "m",
    "waypoint_distance_m": "m",
    "plans_per_second": "1/s",
}

FIGURES: dict[str, Callable[[PlanningConfig], Iterable[Figure]]] = dict.fromkeys(
    UNITS, measure_planning
)
"""Figure to the measurement that it comes from: they all come from the same episodes."""
