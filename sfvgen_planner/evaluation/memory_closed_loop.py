"""Cubes that are returned in the simulator, by plans that the memory has a part in."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.evaluation.memory_config import MemoryConfig
from sfvgen_planner.evaluation.memory_trials import (
    description,
    trial_figures,
    trial_groups,
    trial_states,
)
from sfvgen_planner.evaluation.memory_variants import (
    OURS,
    PAPER,
    REFERENCE,
    VARIANTS,
    State,
    TrialMemories,
    Variant,
    attached,
)
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.return_trials import ReturnTrial
from sfvgen_planner.evaluation.statistics import Estimate
from sfvgen_planner.evaluation.tabletop import ENV_ID
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.memory import EpisodicMemory
from sfvgen_planner.planning import PlanningPolicy, VideoPlanConfig, VideoPlanner
from sfvgen_planner.world_model import load_world_model

logger = logging.getLogger(__name__)


CLOSED_LOOP_FIGURES = (
    "closed_loop_distance_m",
    "closed_loop_success_rate",
    "distance_ratio_no_temp_lora",
)
NO_LOOP_FIGURE = "distance_ratio_no_loop"


def measure_closed_loop(config: MemoryConfig) -> Iterator[Figure]:
    """Where the simulator's cube ends when the video planner plans and executes its return.

    The expert's actions lead up to the request, so that every variant has the same past and the
    return alone is judged. Variants that are no memory but another context are left out: a plan is
    imagined from the usual context. Where nothing but what the loop is worth is asked for, ours is
    the only variant.
    """
    offered = config.offered
    judges_loop = config.asks_for(NO_LOOP_FIGURE)
    if judges_loop and OURS not in offered:
        logger.warning("%s is left out: it compares the variant %s", NO_LOOP_FIGURE, OURS)
        judges_loop = False
    if config.asks_for(*CLOSED_LOOP_FIGURES):
        variants = {
            name: variant
            for name, variant in offered.items()
            if variant.memory is not None or variant == VARIANTS[REFERENCE]
        }
    else:
        variants = {OURS: offered[OURS]} if judges_loop else {}
    if not variants:
        return
    robot = _Robot(config.model, config)
    unlooped = _Robot(config.no_loop_model, config) if judges_loop else None
    for trials, memories, fields in trial_groups(
        robot.model, config, config.num_closed_loop_episodes
    ):
        distances: dict[str, np.ndarray] = {}
        for name, variant in variants.items():
            values = robot.returns(name, variant, trials, memories, fields)
            distances[name], _ = values["closed_loop_distance_m"]
            yield from trial_figures(values, trials, config, variant=name, **fields)
        for name in variants:
            if REFERENCE not in distances or name == REFERENCE:
                continue
            difference = distances[name] - distances[REFERENCE]
            told = {"variant": name, "reference": REFERENCE, **fields}
            paired = {"closed_loop_distance_m_difference": (difference, "m")}
            yield from trial_figures(paired, trials, config, **told)
            yield _ratio(
                "distance_ratio_no_temp_lora",
                distances[name],
                distances[REFERENCE],
                trials,
                config,
                **told,
            )
        if unlooped is not None:
            yield from _loop_figures(unlooped, distances[OURS], trials, config, fields)


def _loop_figures(
    unlooped: _Robot,
    looped_distances: np.ndarray,
    trials: Sequence[ReturnTrial],
    config: MemoryConfig,
    fields: Mapping[str, Any],
) -> Iterator[Figure]:
    """How far from its place the cube ends, as a share of where it ends without the loop.

    That is ours on the model against the paper's TEMP-LoRA on `no_loop_model`, which the slow-fast
    loop began with. Of the latter the figures of the closed loop come too.
    """
    own = TrialMemories(trials)
    values = unlooped.returns(PAPER, VARIANTS[PAPER], trials, own, fields)
    told = {"variant": PAPER, "model": config.no_loop_model, **fields}
    yield from trial_figures(values, trials, config, **told)
    distances, _ = values["closed_loop_distance_m"]
    told = {"variant": OURS, "reference": PAPER, "reference_model": config.no_loop_model, **fields}
    yield _ratio(NO_LOOP_FIGURE, looped_distances, distances, trials, config, **told)


def _ratio(
    name: str,
    distances: np.ndarray,
    reference_distances: np.ndarray,
    trials: Sequence[ReturnTrial],
    config: MemoryConfig,
    **fields: Any,
) -> Figure:
    return Figure.of_estimate(
        name,
        Estimate.of_ratio(distances, reference_distances),
        "1",
        [trial.seed for trial in trials],
        config.device,
        model=config.model,
        **fields,
        **config.sampling,
    )


class _Robot:
    """The video planner of one checkpoint, in the simulator."""

    def __init__(self, checkpoint: str, config: MemoryConfig) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self.model = load_world_model(checkpoint).to(config.device)
        self._planner = VideoPlanner.from_pretrained(checkpoint, VideoPlanConfig(**config.sampling))
        self._planner.inverse_dynamics.to(config.device)

    def returns(
        self,
        name: str,
        variant: Variant,
        trials: Sequence[ReturnTrial],
        memories: TrialMemories,
        fields: Mapping[str, Any],
    ) -> dict[str, tuple[np.ndarray, str]]:
        """Where each trial's cube ends, and whether that is success; values and their units."""
        what = description(name, fields)
        num_memories = min(self._config.batch_size, len(trials))
        with attached(variant, self.model, self._checkpoint, num_memories) as memory:
            states = trial_states(variant, memory, memories, what)
        with attached(variant, self.model, self._checkpoint) as memory:
            results = self._execute(trials, memory, states, what)
        return {
            "closed_loop_distance_m": (np.array([r["distance_m"] for r in results]), "m"),
            "closed_loop_success_rate": (np.array([float(r["success"]) for r in results]), "1"),
        }

    def _execute(
        self,
        trials: Sequence[ReturnTrial],
        memory: EpisodicMemory | None,
        states: Sequence[State] | None,
        what: str,
    ) -> list[dict[str, Any]]:
        """The environment's own result of each trial's request."""
        results = []
        env = make_env(ENV_ID, trials[0].env_kwargs)
        rows = tqdm(
            range(len(trials)), desc=f"{what}: executed", unit="episode", dynamic_ncols=True
        )
        for row in rows:
            trial = trials[row]
            # The memory knows the past already; it joins at the request and goes on learning.
            imagination = ImaginationWrapper(env, self.model)
            observation, info = imagination.reset(seed=trial.seed)
            for action in trial.actions:
                observation, _, terminated, _, info = imagination.step(action)
            if memory is not None:
                assert states is not None
                memory.load(states[row])
                imagination.memory = memory
            policy = PlanningPolicy(imagination, self._planner)
            policy.reset(trial.seed)
            terminated = False
            while not terminated:
                action = policy.act(observation, info["instruction"])
                observation, _, terminated, _, info = imagination.step(action)
            results.append(info["instruction_results"][-1])
        env.close()
        return results
