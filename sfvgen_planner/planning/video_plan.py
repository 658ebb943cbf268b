"""The paper's planner: imagine a video of the instruction, then read the actions off it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from sfvgen_policies.inverse_dynamics import InverseDynamics

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning.plan import Goal, Plan
from sfvgen_planner.world_model import shipped_folder
from sfvgen_planner.world_model.checkpoint import loading_errors


@dataclass(frozen=True)
class VideoPlanConfig:
    """Settings of :class:`VideoPlanner`.

    Attributes:
        num_frames: frames to imagine; a chunk of the model by default.
        num_inference_steps: denoiser calls per chunk.
        guidance_scale: how closely the video follows the instruction, at least 1.
    """

    num_frames: int | None = None
    num_inference_steps: int = 4
    guidance_scale: float = 2.0

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.num_frames < 1:
            raise SfvgenError(
                f"VideoPlanConfig: num_frames must be at least 1, got {self.num_frames}"
            )
        if self.num_inference_steps < 1:
            raise SfvgenError(
                "VideoPlanConfig: num_inference_steps must be at least 1, "
                f"got {self.num_inference_steps}"
            )
        if not self.guidance_scale >= 1:
            raise SfvgenError(
                f"VideoPlanConfig: guidance_scale must be at least 1, got {self.guidance_scale}"
            )


class VideoPlanner:
    """Instruction -> imagined video -> actions through inverse dynamics (paper, section 3.4).

    The video is imagined under the slow weights and whatever the episode's memory holds.

    Args:
        inverse_dynamics: tells which action leads from one frame to the next.
        config: length and sampling of the video.
    """

    def __init__(
        self, inverse_dynamics: InverseDynamics, config: VideoPlanConfig | None = None
    ) -> None:
        self.inverse_dynamics = inverse_dynamics
        self.config = config or VideoPlanConfig()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path = "tabletop", config: VideoPlanConfig | None = None
    ) -> Self:
        """Load the inverse dynamics that a world model's checkpoint comes with.

        Raises:
            SfvgenError: there is no such checkpoint, or it holds no inverse dynamics.
        """
        folder = shipped_folder(name_or_path) / "inverse_dynamics"
        if not folder.is_dir():
            raise SfvgenError(
                f"{folder} is missing: planning from video needs a checkpoint with its inverse "
                "dynamics, as `sfvgen train` writes it"
            )
        with loading_errors(folder):
            return cls(InverseDynamics.from_pretrained(folder, use_safetensors=True), config)

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
        future = imagination.imagine(
            instruction=goal,
            num_frames=self.config.num_frames,
            num_inference_steps=self.config.num_inference_steps,
            guidance_scale=self.config.guidance_scale,
            seed=seed,
        )
        frames = future.frames[0]
        before = np.concatenate([imagination.past_frames[-1:], frames[:-1]])
        return Plan(actions=self.inverse_dynamics.predict(before, frames), frames=frames)

    def action(self, plan: Plan, step: int, frame: np.ndarray) -> np.ndarray:
        """The action from the real ``frame`` to the imagined next one: the loop is closed."""
        return self.inverse_dynamics.predict(frame[None], plan.frames[step][None])[0]
