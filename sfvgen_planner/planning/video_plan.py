"""The paper's planner: imagine a video of the instruction, then read the actions off it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from sfvgen_policies.inverse_dynamics import InverseDynamics
from torch import Tensor

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning.plan import Goal, Plan
from sfvgen_planner.world_model import VideoWorldModel, shipped_folder
from sfvgen_planner.world_model.heads import load_heads
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
        for name in ("num_samples", "num_frames", "num_inference_steps", "guidance_scale"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")


class VideoPlanner:
    """Instruction -> imagined video -> actions through inverse dynamics (paper, section 3.4).

    The videos are imagined under the slow weights and whatever the episode's memory holds; the
    outcome head picks the one that achieves the instruction best.

    Args:
        inverse_dynamics: tells which action leads from one frame to the next.
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
        cls, name_or_path: str | Path = "tabletop", config: VideoPlanConfig | None = None
    ) -> Self:
        """Load the inverse dynamics and the outcome head of a world model's checkpoint.

        Raises:
            SfvgenError: there is no such checkpoint, or it holds no inverse dynamics.
        """
        heads = load_heads(shipped_folder(name_or_path))
        return cls(heads.inverse_dynamics, config, heads.outcome_head)

    def reset(self) -> None:
        """Nothing is carried from plan to plan."""

    def plan(self, imagination: ImaginationWrapper, goal: Goal, seed: int | None = None) -> Plan:
        """Imagine a video of the instruction ``goal`` and the actions that would make it.

        Raises:
            SfvgenError: where the goal is not an instruction.
        """
        if not isinstance(goal, str):
            raise SfvgenError(
                "VideoPlanner plans from an instruction (a str); for a goal image use MPCPlanner"
            )
        model = imagination.world_model
        future = imagination.imagine(
            instruction=goal,
            num_samples=1 if self.outcome_head is None else self.config.num_samples,
            num_frames=self.config.num_frames,
            num_inference_steps=self.config.num_inference_steps,
            guidance_scale=self.config.guidance_scale,
            seed=seed,
        )
        scores = self._scores(model, future.latents, goal)
        best = int(scores.argmax())
        frames = model.decode(future.latents[best : best + 1])[0]
        before = np.concatenate([imagination.past_frames[-1:], frames[:-1]])
        return Plan(
            actions=self.inverse_dynamics.predict(before, frames),
            frames=frames,
            cost=None if self.outcome_head is None else -float(scores[best]),
            diagnostics={"scores": scores.tolist()},
        )

    @torch.no_grad()
    def _scores(self, model: VideoWorldModel, latents: Tensor, instruction: str) -> Tensor:
        """Calibrated log-odds ``(N,)`` that a video ``(N, C, F, h, w)`` achieves the instruction.

        The best moment counts, as the mean of two neighbouring frames, because a single frame may
        look right by chance; what is imagined after the success does not matter.
        """
        if self.outcome_head is None:
            return torch.zeros(len(latents))
        num_samples, _, num_frames = latents.shape[:3]
        head = self.outcome_head.to(latents.device)
        token_ids = model.tokenize([instruction]).to(latents.device)
        flat = latents.transpose(1, 2).flatten(0, 1).float()
        logits = head.success_logits(flat, token_ids.expand(len(flat), -1))
        logits = logits.view(num_samples, num_frames)
        pairs = (logits[:, :-1] + logits[:, 1:]) / 2 if num_frames > 1 else logits
        return pairs.amax(dim=1).cpu()

    def action(self, plan: Plan, step: int, frame: np.ndarray) -> np.ndarray:
        """The action from the real ``frame`` to the imagined next one: the loop is closed."""
        return self.inverse_dynamics.predict(frame[None], plan.frames[step][None])[0]
