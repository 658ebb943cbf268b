"""Do policies do as well in imagination as they do in the simulator, and in the same order?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.errors import require
from sfvgen_planner.evaluation.agreement import mean_rank_violation, pearson_r, spearman_rho
from sfvgen_planner.evaluation.measure import EvaluationConfig
from sfvgen_planner.evaluation.outcome_head import required_outcome_head
from sfvgen_planner.evaluation.policy_imagination import act_in_imagination, real_starts, replay
from sfvgen_planner.evaluation.policy_ladder import LADDER, Rung, video_planner
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.rollout import play, succeeded
from sfvgen_planner.evaluation.statistics import Estimate
from sfvgen_planner.evaluation.tabletop import ENV_ID
from sfvgen_planner.imagination import ImaginationWrapper
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
        video_planner: whether the video planner is evaluated too, which takes by far the longest.
    """

    num_policy_episodes: int = 100
    num_inference_steps: int = 2
    success_threshold: float = 0.5
    video_planner: bool = False


def measure_policies(
    config: PolicyEvaluationConfig, ladder: Sequence[Rung] | None = None
) -> Iterator[Figure]:
    """Success rates of every policy in both worlds from the same starts, and their agreement.

    A policy that looks into the simulator cannot look into an imagined world. So what every policy
    did in the simulator is replayed in imagination: mode ``replay``, on which the agreement is
    measured. Policies that act on images alone also act in the imagined world themselves: mode
    ``closed_loop``. Imagination begins with one real frame and sees no other.

    The intervals resample starts, all policies together; they take the policies as given.

    Args:
        config: model, number of starts and so on.
        ladder: at least two policies of different quality; ``LADDER`` by default.

    Raises:
        SfvgenError: the model has no outcome head; or, after the success rates, all policies do
            equally well in one of the worlds, so that there is no correlation.
    """
    rungs = list(LADDER if ladder is None else ladder)
    if config.video_planner:
        rungs.append(video_planner(config.model))
    require(len(rungs) >= 2, f"at least 2 policies can be compared, got {len(rungs)}")
    head = required_outcome_head(config.model).to(config.device)
    model = load_world_model(config.model).to(config.device)
    seeds = config.seeds(config.num_policy_episodes)
    env = ImaginationWrapper(make_env(ENV_ID, TASK), model)
    starts = real_starts(env, seeds, model.config.image_size)
    simulated: list[np.ndarray] = []
    replayed: dict[str, list[np.ndarray]] = {criterion: [] for criterion in CRITERIA}
    for rung in rungs:
        episodes = list(play(env, rung.make(env), seeds, f"{rung.name}, simulator"))
        simulated.append(np.array([succeeded(episode) for episode in episodes], float))
        told: dict[str, Any] = {"policy": rung.name, "where": "simulator", **TASK}
        yield Figure.measured("policy_success_rate", simulated[-1], "1", seeds, **told)
        imagined = {
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
            imagined["closed_loop"] = act_in_imagination(
                model,
                head,
                rung,
                starts,
                seeds,
                horizon=DEFAULT_HORIZON,
                success_threshold=config.success_threshold,
                num_inference_steps=config.num_inference_steps,
            )
        for mode, probabilities in imagined.items():
            for criterion, successes in _verdicts(probabilities, config.success_threshold).items():
                if mode == "replay":
                    replayed[criterion].append(successes)
                told["where"] = "imagination"
                told |= {"mode": mode, "criterion": criterion, **_imagined_with(config)}
                yield Figure.measured(
                    "policy_success_rate", successes, "1", seeds, config.device, **told
                )
    env.close()
    truths = np.array(simulated)
    for criterion, rows in replayed.items():
        predictions = np.array(rows)
        told = {"mode": "replay", "criterion": criterion, "policies": len(rungs)}
        told |= _imagined_with(config) | TASK
        agreed = (truths == predictions).mean(axis=0)
        yield Figure.measured("episode_agreement", agreed, "1", seeds, config.device, **told)
        for name, statistic in STATISTICS.items():
            estimate = _over_starts(statistic, truths, predictions)
            yield Figure.of_estimate(name, estimate, "1", seeds, config.device, **told)


FIGURES: dict[str, Callable[[PolicyEvaluationConfig], Iterable[Figure]]] = dict.fromkeys(
    ("policy_success_rate", "episode_agreement", *STATISTICS), measure_policies
)
"""Figure to the measurement that it comes from: they come together."""


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
        spread = np.ptp(rates.mean(axis=1))
        require(
            statistic is mean_rank_violation or spread > 0,
            f"all {num_policies} policies do equally well in {where} ({rates.mean():.0%} of "
            f"{rates.shape[1]} episodes), so there is no correlation; take more episodes or a "
            "better model",
        )

    def of_rates(real: np.ndarray, other: np.ndarray) -> float:
        rates = (values.reshape(-1, num_policies).mean(axis=0) for values in (real, other))
        return statistic(*rates)

    return Estimate.of_statistic(of_rates, list(truths.T), list(predictions.T))
