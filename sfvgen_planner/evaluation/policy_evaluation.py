"""Do policies do as well in imagination as they do in the simulator, and in the same order?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.errors import require
from sfvgen_planner.evaluation.agreement import mean_rank_violation, pearson_r, spearman_rho
from sfvgen_planner.evaluation.measure import EvaluationConfig, check_choices
from sfvgen_planner.evaluation.outcome_head import required_outcome_head
from sfvgen_planner.evaluation.policy_imagination import act_in_imagination, real_starts, replay
from sfvgen_planner.evaluation.policy_ladder import LADDER, PLANNERS, Rung, planner_rung
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.rollout import play, succeeded
from sfvgen_planner.evaluation.statistics import Estimate
from sfvgen_planner.evaluation.tabletop import ENV_ID
from sfvgen_planner.imagination import ImaginationWrapper, ObservationEncoder
from sfvgen_planner.imagination.vector_env import DEFAULT_HORIZON
from sfvgen_planner.world_model import load_world_model

TASK: dict[str, Any] = {"level": 1, "recall": "none"}
"""One instruction, with nothing to remember."""
Statistic = Callable[[np.ndarray, np.ndarray], float]
STATISTICS: dict[str, Statistic] = {
    "mean_rank_violation": mean_rank_violation,
    "pearson_r": pearson_r,
    "spearman_rho": spearman_rho,
}
"""Of the success rates ``(P,)`` in the simulator and in imagination."""

CRITERIA: dict[str, Callable[[np.ndarray], float]] = {
    "any_frame": lambda probabilities: float(probabilities.max()),
    "last_frame": lambda probabilities: float(probabilities[-1]),
}
"""Which of the imagined frames ``(T,)`` an episode is judged by.

The simulator's own verdict is on the state that the last action leads to. One frame among many may
look like success by chance, or in passing.
"""


@dataclass(frozen=True)
class PolicyEvaluationConfig(EvaluationConfig):
    """Size of the evaluation.

    Attributes:
        num_policy_episodes: starts that every policy is run from.
        num_inference_steps: denoiser calls per imagined chunk.
        success_threshold: probability that counts as success.
        sb3: PPO or SAC checkpoints of Stable-Baselines3 that are evaluated too.
        planners: names of ``PLANNERS`` that are evaluated too, which takes by far the longest.
    """

    env_id = ENV_ID
    num_policy_episodes: int = 100
    num_inference_steps: int = 2
    success_threshold: float = 0.5
    sb3: tuple[Path, ...] = ()
    planners: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choices({"planner": (self.planners, PLANNERS)})


def measure_policies(
    config: PolicyEvaluationConfig, ladder: Sequence[Rung] | None = None
) -> Iterator[Figure]:
    """Success rates of every policy in both worlds from the same starts, and their agreement.

    A policy that looks into the simulator cannot look into an imagined world. So what every policy
    did in the simulator is replayed in imagination: mode ``replay``. Policies that act on images
    alone also act in the imagined world themselves: mode ``closed_loop``. Imagination begins with
    one real frame and sees no other.

    The agreement is measured for each mode over the policies that it has: in ``closed_loop`` where
    these are two at least, and a correlation where they differ in both worlds. The intervals
    resample starts, all policies together; they take the policies as given.

    Args:
        config: model, number of starts and so on.
        ladder: policies of different quality, to which those that the config names are added;
            ``LADDER`` by default. In all there must be two at least, by different names.

    Raises:
        SfvgenError: the model has no outcome head; a checkpoint does not fit; or, after the success
            rates, all policies do equally well in one of the worlds, so that there is no
            correlation of ``replay``.
    """
    head = required_outcome_head(config.model).to(config.device)
    model = load_world_model(config.model).to(config.device)
    seeds = config.seeds(config.num_policy_episodes)
    env = ImaginationWrapper(make_env(ENV_ID, TASK), model)
    rungs = [*(LADDER if ladder is None else ladder), *_named_rungs(config, env)]
    _check_names([rung.name for rung in rungs])
    # Whatever cannot act here is refused before any work is spent.
    policies = [rung.make(env) for rung in rungs]
    starts = real_starts(env, seeds, model.config.image_size)
    simulated: dict[str, np.ndarray] = {}
    imagined: dict[tuple[str, str], dict[str, np.ndarray]] = {
        (mode, criterion): {} for mode in ("replay", "closed_loop") for criterion in CRITERIA
    }
    for rung, policy in zip(rungs, policies, strict=True):
        episodes = list(play(env, policy, seeds, f"{rung.name}, simulator"))
        simulated[rung.name] = np.array([succeeded(episode) for episode in episodes], float)
        told: dict[str, Any] = {"policy": rung.name, "where": "simulator", **rung.fields, **TASK}
        yield Figure.measured("policy_success_rate", simulated[rung.name], "1", seeds, **told)
        probabilities = {
            "replay": replay(
                model,
                head,
                starts,
                [episode.actions for episode in episodes],
                num_inference_steps=config.num_inference_steps,
                batch_size=config.batch_size,
                description=f"{rung.name}, imagined replay",
            )
        }
        if rung.acts_on_images:
            probabilities["closed_loop"] = act_in_imagination(
                model,
                head,
                rung,
                starts,
                seeds,
                horizon=DEFAULT_HORIZON,
                success_threshold=config.success_threshold,
                num_inference_steps=config.num_inference_steps,
            )
        for mode, found in probabilities.items():
            for criterion, successes in _verdicts(found, config.success_threshold).items():
                imagined[mode, criterion][rung.name] = successes
                told |= {"where": "imagination", "mode": mode, "criterion": criterion}
                told |= _imagined_with(config)
                yield Figure.measured(
                    "policy_success_rate", successes, "1", seeds, config.device, **told
                )
    env.close()
    for (mode, criterion), rows in imagined.items():
        if len(rows) >= 2:
            truths = np.array([simulated[name] for name in rows])
            told = {"mode": mode, "criterion": criterion, **_imagined_with(config), **TASK}
            yield from _agreement(truths, np.array(list(rows.values())), seeds, config.device, told)


FIGURES: dict[str, Callable[[PolicyEvaluationConfig], Iterable[Figure]]] = dict.fromkeys(
    ("policy_success_rate", "episode_agreement", *STATISTICS), measure_policies
)
"""Figure to the measurement that it comes from: they come together."""


def _named_rungs(config: PolicyEvaluationConfig, env: ImaginationWrapper) -> list[Rung]:
    """The planners and checkpoints that are evaluated beside the ladder."""
    rungs = [planner_rung(name, config.model, config.device) for name in config.planners]
    if config.sb3:
        from sfvgen_planner.evaluation.sb3_rung import sb3_rung

        encoder = ObservationEncoder(env.world_model)
        rungs += [sb3_rung(path, env, encoder, config.model, config.device) for path in config.sb3]
    return rungs


def _check_names(names: Sequence[str]) -> None:
    require(len(names) >= 2, f"at least 2 policies can be compared, got {len(names)}")
    for name in names:
        require(
            names.count(name) == 1,
            f"two policies are called {name!r}, and their figures could not be told apart: give "
            "one of them, or its file, another name",
        )


def _verdicts(probabilities: Sequence[np.ndarray], threshold: float) -> dict[str, np.ndarray]:
    """For each criterion whether the episodes ``(N,)`` succeeded, 0 or 1."""
    return {
        criterion: np.array([best(one) >= threshold for one in probabilities], float)
        for criterion, best in CRITERIA.items()
    }


def _imagined_with(config: PolicyEvaluationConfig) -> dict[str, Any]:
    return {
        "model": config.model,
        "num_inference_steps": config.num_inference_steps,
        "success_threshold": config.success_threshold,
    }


def _agreement(
    truths: np.ndarray,
    predictions: np.ndarray,
    seeds: Sequence[int],
    device: str,
    told: dict[str, Any],
) -> Iterator[Figure]:
    """How far success in imagination tells success in the simulator.

    Args:
        truths: ``(P, N)``, whether policy p succeeded from start n.
        predictions: likewise.
        seeds: N of them.
        device: of the model.
        told: with every figure.

    Raises:
        SfvgenError: there is no correlation of ``replay``.
    """
    told = told | {"policies": len(truths)}
    agreed = (truths == predictions).mean(axis=0)
    yield Figure.measured("episode_agreement", agreed, "1", seeds, device, **told)
    statistics = STATISTICS
    if told["mode"] == "closed_loop" and not (_differ(truths) and _differ(predictions)):
        # Few policies act on images: that they are equally bad is no reason to refuse the rest.
        statistics = {"mean_rank_violation": mean_rank_violation}
    for name, statistic in statistics.items():
        estimate = _over_starts(statistic, truths, predictions)
        yield Figure.of_estimate(name, estimate, "1", seeds, device, **told)


def _differ(successes: np.ndarray) -> bool:
    """Whether policies ``(P, N)`` differ in their success rates."""
    return bool(np.ptp(successes.mean(axis=1)) > 0)


def _over_starts(statistic: Statistic, truths: np.ndarray, predictions: np.ndarray) -> Estimate:
    """A statistic of the policies' success rates; whole starts are resampled.

    Args:
        statistic: of two arrays ``(P,)``.
        truths: ``(P, N)``, whether policy p succeeded from start n.
        predictions: likewise.

    Raises:
        SfvgenError: a correlation is asked for where there is none.
    """
    num_policies = len(truths)
    for rates, where in ((truths, "the simulator"), (predictions, "imagination")):
        require(
            statistic is mean_rank_violation or _differ(rates),
            f"all {num_policies} policies do equally well in {where} ({rates.mean():.0%} of "
            f"{rates.shape[1]} episodes), so there is no correlation; take more episodes or a "
            "better model",
        )

    def of_rates(real: np.ndarray, other: np.ndarray) -> float:
        rates = (values.reshape(-1, num_policies).mean(axis=0) for values in (real, other))
        return statistic(*rates)

    return Estimate.of_statistic(of_rates, list(truths.T), list(predictions.T))
