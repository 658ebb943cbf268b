"""How well the outcome head tells, step by step, what the simulator knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sfvgen_policies import make_policy

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.data.episode import Episode
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation.chunks import imagine_frames
from sfvgen_planner.evaluation.measure import EvaluationConfig
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.rollout import play
from sfvgen_planner.evaluation.statistics import (
    Estimate,
    expected_calibration_error,
    mean_absolute_error,
    r_squared,
    roc_auc,
)
from sfvgen_planner.evaluation.tabletop import ENV_ID, needs_memory
from sfvgen_planner.world_model import VideoWorldModel, checkpoint_folder, load_world_model
from sfvgen_planner.world_model.heads import load_heads
from sfvgen_planner.world_model.outcome_head import OutcomeHead

Statistic = Callable[[np.ndarray, np.ndarray], float]

SUCCESS_STATISTICS: dict[str, Statistic] = {
    "success_head_auc": roc_auc,
    "success_head_ece": expected_calibration_error,
}
REWARD_STATISTICS: dict[str, Statistic] = {
    "reward_head_r2": r_squared,
    "reward_head_mae": mean_absolute_error,
}
CLUMSY = 0.3
"""Noise of an expert that often takes detours and drops the cube beside its place."""
MOVES: dict[str, Any] = {"level": 3, "recall": "none"}
RETURNS: dict[str, Any] = {"level": 2, "recall": "first"}
GROUPS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("memory-free", MOVES, 0.0),
    ("memory-free", MOVES, CLUMSY),
    ("returns", RETURNS, 0.0),
)
"""Which instructions are judged, in which episodes, and the noise of the expert."""


@dataclass(frozen=True, eq=False)
class Steps:
    """M steps of some episodes.

    Attributes:
        before: latents ``(M, C, h, w)`` of the frames before.
        after: of the frames after.
        instructions: in force.
        successes: the simulator's ``(M,)`` bool.
        rewards: the simulator's ``(M,)``.
        episode: index ``(M,)`` of the episode of each.
    """

    before: torch.Tensor
    after: torch.Tensor
    instructions: list[str]
    successes: np.ndarray
    rewards: np.ndarray
    episode: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[tuple[torch.Tensor, Episode, int, int]]) -> Steps:
        """Steps of stretches of episodes.

        Args:
            parts: latents ``(C, n + 1, h, w)``, the episode, the step that leads from the first to
                the second of them, and the episode's index.
        """
        spans = [slice(first, first + video.shape[1] - 1) for video, _, first, _ in parts]
        used = [(episode, span) for (_, episode, _, _), span in zip(parts, spans, strict=True)]
        return cls(
            before=torch.cat([video[:, :-1].transpose(0, 1) for video, *_ in parts]),
            after=torch.cat([video[:, 1:].transpose(0, 1) for video, *_ in parts]),
            instructions=[text for episode, span in used for text in episode.instructions[span]],
            successes=np.concatenate([_successes(episode)[span] for episode, span in used]),
            rewards=np.concatenate([episode.rewards[span] for episode, span in used]),
            episode=np.concatenate([np.full(v.shape[1] - 1, index) for v, _, _, index in parts]),
        )


def required_outcome_head(model: str) -> OutcomeHead:
    """The outcome head of a shipped model or a checkpoint folder.

    Raises:
        SfvgenError: it has none.
    """
    head = load_heads(checkpoint_folder(model)).outcome_head
    if head is None:
        raise SfvgenError(
            f"the model {model} has no outcome head; train one with a recipe that has an "
            "`outcome_head:` section, or choose other figures with --only"
        )
    return head


def measure_outcome_head(
    config: EvaluationConfig, seeds: range, num_inference_steps: int
) -> Iterator[Figure]:
    """Ranking and calibration (15 bins of equal width) of success, and the error of the reward.

    Judged are real frames, and frames that were imagined in chunks from real pasts with the actions
    that were taken.

    Args:
        config: model, device and batch size.
        seeds: of the episodes of every group.
        num_inference_steps: denoiser calls per imagined chunk.

    Raises:
        SfvgenError: the model has no outcome head.
    """
    head = required_outcome_head(config.model).to(config.device)
    model = load_world_model(config.model).to(config.device)
    for instructions, env_kwargs, noise in GROUPS:
        env = make_env(ENV_ID, env_kwargs)
        policy = make_policy("expert", env, noise=noise)
        episodes = list(play(env, policy, seeds, f"{instructions} episodes"))
        env.close()
        videos = {
            "real": real_steps(model, episodes),
            "imagined": imagined_steps(model, episodes, num_inference_steps, config.batch_size),
        }
        for video, steps in videos.items():
            memory = np.array([needs_memory(text) for text in steps.instructions])
            counted = memory == (instructions == "returns")
            probabilities, rewards = judge(model, head, steps)
            settings = {
                "model": config.model,
                "video": video,
                "instructions": instructions,
                "policy": "expert" if noise == 0 else f"expert with noise {noise}",
                "steps": int(counted.sum()),
                **env_kwargs,
            }
            for statistics, truths, predictions in (
                (SUCCESS_STATISTICS, steps.successes, probabilities),
                (REWARD_STATISTICS, steps.rewards, rewards),
            ):
                for name, statistic in statistics.items():
                    estimate = Estimate.of_statistic(
                        statistic,
                        _by_episode(truths, steps, counted),
                        _by_episode(predictions, steps, counted),
                    )
                    yield Figure.of_estimate(name, estimate, "1", seeds, config.device, **settings)


def real_steps(model: VideoWorldModel, episodes: Sequence[Episode]) -> Steps:
    """All steps of the episodes, as the camera saw them."""
    return Steps.of(
        [
            (model.encode(episode.frames[None])[0], episode, 0, index)
            for index, episode in enumerate(episodes)
        ]
    )


def imagined_steps(
    model: VideoWorldModel,
    episodes: Sequence[Episode],
    num_inference_steps: int,
    batch_size: int,
) -> Steps:
    """The last steps of the episodes that fill whole chunks, as the model imagines them."""
    num_past, num_future = model.config.num_past_frames, model.config.num_future_frames
    cuts = [
        (index, now)
        for index, episode in enumerate(episodes)
        for now in range(len(episode.frames) - num_future, num_past - 1, -num_future)
    ]
    imagined = imagine_frames(
        model,
        np.stack([episodes[index].frames[now - num_past : now] for index, now in cuts]),
        actions=np.stack(
            [episodes[index].actions[now - 1 : now - 1 + num_future] for index, now in cuts]
        ),
        num_inference_steps=num_inference_steps,
        batch_size=batch_size,
        description="imagined steps",
        output_type="latent",
    )
    parts = []
    for (index, now), future in zip(cuts, torch.from_numpy(imagined), strict=True):
        present = model.encode(episodes[index].frames[None, now - 1 : now])[0]
        video = torch.cat([present, future.to(present)], dim=1)
        parts.append((video, episodes[index], now - 1, index))
    return Steps.of(parts)


@torch.no_grad()
def judge(
    model: VideoWorldModel, head: OutcomeHead, steps: Steps, batch_size: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of success ``(M,)`` and rewards ``(M,)``."""
    token_ids = head.tokenize(model, steps.instructions).to(steps.after.device)
    verdicts = [
        head(steps.before[rows].float(), steps.after[rows].float(), token_ids[rows])
        for rows in torch.arange(len(token_ids)).split(batch_size)
    ]
    logits, rewards = (torch.cat(parts).float() for parts in zip(*verdicts, strict=True))
    return logits.sigmoid().cpu().numpy(), rewards.cpu().numpy()


def _successes(episode: Episode) -> np.ndarray:
    assert episode.successes is not None
    return episode.successes


def _by_episode(values: np.ndarray, steps: Steps, counted: np.ndarray) -> list[np.ndarray]:
    """The counted values, one array per episode."""
    indices = range(int(steps.episode.max()) + 1)
    return [values[counted & (steps.episode == index)] for index in indices]
