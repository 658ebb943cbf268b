"""Cubes that are returned in the simulator, by plans that the memory has a part in."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from sfvgen_planner.data.environment import Environment, make_env
from sfvgen_planner.evaluation.memory_config import MemoryConfig
from sfvgen_planner.evaluation.memory_trials import description, trial_figures, trial_groups
from sfvgen_planner.evaluation.memory_variants import (
    OURS,
    PAPER,
    REFERENCE,
    VARIANTS,
    Variant,
    attached,
    remembered,
    write_chunks,
)
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.return_trials import ReturnTrial
from sfvgen_planner.evaluation.rollout import play_spread
from sfvgen_planner.evaluation.searches import WHOLE_CHUNKS
from sfvgen_planner.evaluation.statistics import Estimate
from sfvgen_planner.evaluation.tabletop import ENV_ID
from sfvgen_planner.imagination import ImaginationWrapper, step_batch
from sfvgen_planner.memory import EpisodicMemory
from sfvgen_planner.planning import PlanningPolicy, VideoPlanConfig, VideoPlanner, act_batch
from sfvgen_planner.world_model import VideoWorldModel, checkpoint_folder, load_world_model

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
    if judges_loop:
        # Known to be there before the first episode is played.
        checkpoint_folder(config.no_loop_model)
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
    model = load_world_model(config.model)
    groups = trial_groups(model, config, config.num_closed_loop_episodes, variants.values())
    for trials, _, fields in groups:
        distances: dict[str, np.ndarray] = {}
        for name, variant in variants.items():
            values = _returns(name, variant, config.model, trials, config, fields)
            distances[name], _ = values["closed_loop_distance_m"]
            yield from trial_figures(values, trials, config, **config.told(name), **fields)
        for name in variants:
            if REFERENCE not in distances or name == REFERENCE:
                continue
            difference = distances[name] - distances[REFERENCE]
            told = {**config.told(name), "reference": REFERENCE, **fields}
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
        if judges_loop:
            yield from _loop_figures(distances[OURS], trials, config, fields)


def _loop_figures(
    looped_distances: np.ndarray,
    trials: Sequence[ReturnTrial],
    config: MemoryConfig,
    fields: Mapping[str, Any],
) -> Iterator[Figure]:
    """How far from its place the cube ends, as a share of where it ends without the loop.

    That is ours on the model against the paper's TEMP-LoRA on `no_loop_model`, which the slow-fast
    loop began with. Of the latter the figures of the closed loop come too.
    """
    values = _returns(PAPER, VARIANTS[PAPER], config.no_loop_model, trials, config, fields)
    told = {"variant": PAPER, "model": config.no_loop_model, **fields}
    yield from trial_figures(values, trials, config, **told)
    distances, _ = values["closed_loop_distance_m"]
    told = {
        **config.told(OURS),
        "reference": PAPER,
        "reference_model": config.no_loop_model,
        **fields,
    }
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


def _returns(
    name: str,
    variant: Variant,
    checkpoint: str,
    trials: Sequence[ReturnTrial],
    config: MemoryConfig,
    fields: Mapping[str, Any],
) -> dict[str, tuple[np.ndarray, str]]:
    """Where each trial's cube ends, and whether that is success; values and their units."""
    results = play_spread(
        _Robot(checkpoint, variant, config),
        list(zip(trials, remembered(variant, trials), strict=True)),
        config.num_workers,
        f"{description(name, fields)}: executed",
        config.num_envs,
    )
    return {
        "closed_loop_distance_m": (np.array([r["distance_m"] for r in results]), "m"),
        "closed_loop_success_rate": (np.array([float(r["success"]) for r in results]), "1"),
    }


class _Robot:
    """Returns cubes in the simulator with one checkpoint's video planner and a variant's memory."""

    def __init__(self, checkpoint: str, variant: Variant, config: MemoryConfig) -> None:
        self._checkpoint = checkpoint
        self._variant = variant
        self._config = config
        self._opened: _Opened | None = None

    def play(self, tasks: Sequence[tuple[ReturnTrial, ReturnTrial]]) -> list[dict[str, Any]]:
        """The environment's own result of each trial's request; they are executed side by side.

        Args:
            tasks: The trials, and with each the one whose past its memory has learnt.
        """
        trials, pasts = zip(*tasks, strict=True)
        if self._opened is None:
            self._opened = self._open(trials[0].env_kwargs)
        envs, model, planner, memory, _ = self._opened
        policies: list[PlanningPolicy] = []
        infos: list[dict[str, Any]] = []
        for index, trial in enumerate(trials):
            # The memory knows the past already; it joins at the request and goes on learning.
            imagination = ImaginationWrapper(envs[index], model, memory_index=index)
            _, info = imagination.reset(seed=trial.seed)
            for action in trial.actions:
                *_, info = imagination.step(action)
            infos.append(info)
            policies.append(PlanningPolicy(imagination, planner, WHOLE_CHUNKS))
            policies[-1].reset(trial.seed)
        if memory is not None:
            memory.reset()
            for _ in write_chunks(memory, pasts):
                pass
            for policy in policies:
                policy.imagination.memory = memory
        rows = list(range(len(trials)))
        while rows:
            acting = [policies[row] for row in rows]
            actions = act_batch(acting, [infos[row]["instruction"] for row in rows])
            results = step_batch([policy.imagination for policy in acting], actions)
            for row, (*_, info) in zip(rows, results, strict=True):
                infos[row] = info
            rows = [row for row, result in zip(rows, results, strict=True) if not result[2]]
        return [info["instruction_results"][-1] for info in infos]

    def _open(self, env_kwargs: dict[str, Any]) -> _Opened:
        config, stack = self._config, ExitStack()
        model = load_world_model(self._checkpoint).to(config.device)
        planner = VideoPlanner.from_pretrained(self._checkpoint, VideoPlanConfig(**config.sampling))
        num_envs = min(config.num_envs, config.num_closed_loop_episodes)
        envs = [make_env(ENV_ID, env_kwargs) for _ in range(num_envs)]
        for env in envs:
            stack.callback(env.close)
        memory = stack.enter_context(attached(self._variant, model, self._checkpoint, num_envs))
        return _Opened(envs, model, planner, memory, stack)

    def close(self) -> None:
        """Close the environments."""
        if self._opened is not None:
            self._opened.stack.close()
        self._opened = None


class _Opened(NamedTuple):
    envs: Sequence[Environment]
    model: VideoWorldModel
    planner: VideoPlanner
    memory: EpisodicMemory | None
    stack: ExitStack
