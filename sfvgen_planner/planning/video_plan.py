"""The paper's planner: imagine a video of the instruction, then read the actions off it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Self

import numpy as np
import torch
from sfvgen_policies.inverse_dynamics import InverseDynamics
from torch import Tensor

from sfvgen_planner.errors import SfvgenError, check_counts, require
from sfvgen_planner.imagination import (
    Imagination,
    ImaginationWrapper,
    decode_videos,
    imagine_batch,
)
from sfvgen_planner.planning.plan import BatchPlanner, Goal, Plan
from sfvgen_planner.world_model import checkpoint_folder
from sfvgen_planner.world_model.heads import load_heads, required_inverse_dynamics
from sfvgen_planner.world_model.outcome_head import OutcomeHead


@dataclass(frozen=True)
class VideoPlanConfig:
    """Settings of :class:`VideoPlanner`.

    Attributes:
        num_samples: videos imagined per plan; with an outcome head the one that it judges best is
            taken, else only one is imagined.
        num_frames: frames to imagine; one chunk by default.
        num_inference_steps: denoiser calls per chunk.
        guidance_scale: how closely the video follows the instruction, at least 1.
    """

    num_samples: int = 2
    num_frames: int | None = None
    num_inference_steps: int = 4
    guidance_scale: float = 2.0

    def __post_init__(self) -> None:
        check_counts(self, "num_samples", "num_frames", "num_inference_steps")
        require(
            self.guidance_scale >= 1,
            f"guidance_scale must be at least 1, got {self.guidance_scale}",
        )


class VideoPlanner(BatchPlanner):
    """Instruction -> imagined video -> actions through inverse dynamics (paper, section 3.4).

    The videos are imagined under the slow weights and whatever the episode's memory holds; the
    outcome head picks the one that achieves the instruction best.

    Args:
        inverse_dynamics: tells which action leads from one frame to the next; moved to the world
            model's device, as the head is.
        config: number, length and sampling of the videos.
        outcome_head: judges the frames of several imagined videos; None imagines a single one.
    """

    def __init__(
        self,
        inverse_dynamics: InverseDynamics,
        config: VideoPlanConfig | None = None,
        outcome_head: OutcomeHead | None = None,
    ) -> None:
        self.inverse_dynamics = inverse_dynamics
        self.outcome_head = outcome_head
        self.config = config or VideoPlanConfig()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | PathLike[str] = "tabletop", config: VideoPlanConfig | None = None
    ) -> Self:
        """Load the inverse dynamics and the outcome head of a world model's checkpoint.

        Args:
            name_or_path: a shipped model's name, a checkpoint folder or a Hub id
                (``user/name@revision``).
            config: number, length and sampling of the videos.

        Raises:
            SfvgenError: there is no such checkpoint, or it holds no inverse dynamics.
        """
        folder = checkpoint_folder(name_or_path)
        heads = load_heads(folder)
        return cls(required_inverse_dynamics(heads, folder), config, heads.outcome_head)

    def reset(self, imagination: ImaginationWrapper | None = None) -> None:
        """Nothing is carried from plan to plan."""

    def plan_batch(
        self,
        imaginations: Sequence[ImaginationWrapper],
        goals: Sequence[Goal],
        seeds: Sequence[int | None],
    ) -> list[Plan]:
        """Imagine a video of each instruction and the actions that would make it.

        Raises:
            SfvgenError: where a goal is not an instruction, or the inverse dynamics is that of
                other actions.
        """
        instructions = [goal for goal in goals if isinstance(goal, str)]
        if len(instructions) < len(goals):
            raise SfvgenError(
                "VideoPlanner plans from an instruction (a str); for a goal image use MPCPlanner"
            )
        futures = imagine_batch(
            imaginations,
            instructions=instructions,
            num_samples=1 if self.outcome_head is None else self.config.num_samples,
            num_frames=self.config.num_frames,
            num_inference_steps=self.config.num_inference_steps,
            guidance_scale=self.config.guidance_scale,
            seeds=seeds,
        )
        self.inverse_dynamics.to(futures[0].latents.device)
        all_scores = self._scores(futures)
        best = [int(scores.argmax()) for scores in all_scores]
        chosen = [future.latents[index] for future, index in zip(futures, best, strict=True)]
        videos = decode_videos(futures[0].world_model, chosen)
        presents = [imagination.past_frames[-1:] for imagination in imaginations]
        befores = [
            np.concatenate([present, frames[:-1]])
            for present, frames in zip(presents, videos, strict=True)
        ]
        actions = self.inverse_dynamics.predict(np.concatenate(befores), np.concatenate(videos))
        size = len(imaginations[0].world_model.config.action_low)
        require(
            actions.shape[1] == size,
            f"the inverse dynamics gives actions of {actions.shape[1]} numbers, but the world "
            f"model takes {size}: take both from the same checkpoint",
        )
        ends = np.cumsum([len(frames) for frames in videos])
        return [
            Plan(
                actions=own,
                frames=frames,
                cost=None if self.outcome_head is None else -float(scores[index]),
                diagnostics={"scores": scores.tolist()},
            )
            for own, frames, scores, index in zip(
                np.split(actions, ends[:-1]), videos, all_scores, best, strict=True
            )
        ]

    @torch.no_grad()
    def _scores(self, futures: Sequence[Imagination]) -> list[Tensor]:
        """Calibrated log-odds ``(N,)`` that each future's videos achieve its instruction.

        The best moment counts, as the mean of two neighbouring frames, because a single frame may
        look right by chance; what is imagined after the success does not matter.
        """
        if self.outcome_head is None:
            return [torch.zeros(len(future)) for future in futures]
        model, device = futures[0].world_model, futures[0].latents.device
        # Videos of any length: frame after frame.
        frames = [future.latents.transpose(1, 2).flatten(0, 1).float() for future in futures]
        counts = [len(own) for own in frames]
        texts = [future.instruction or "" for future in futures]
        token_ids = self.outcome_head.tokenize(model, texts)
        token_ids = token_ids.repeat_interleave(torch.tensor(counts), dim=0).to(device)
        logits = self.outcome_head.to(device).success_logits(torch.cat(frames), token_ids)
        scores = []
        for future, own in zip(futures, logits.cpu().split(counts), strict=True):
            own = own.view(len(future), future.num_frames)
            pairs = (own[:, :-1] + own[:, 1:]) / 2 if future.num_frames > 1 else own
            scores.append(pairs.amax(dim=1))
        return scores

    def action_batch(
        self, plans: Sequence[Plan], steps: Sequence[int], frames: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Actions from the real frames to the imagined next ones: the loop is closed."""
        nexts = [plan.frames[step] for plan, step in zip(plans, steps, strict=True)]
        return self.inverse_dynamics.predict(np.stack(frames), np.stack(nexts))
