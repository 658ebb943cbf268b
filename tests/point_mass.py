"""A world whose video, dynamics and best plans are known in closed form.

A white blob on black; an action (vx, vy) in [-1, 1] moves it by ``SPEED`` of the picture's edge.
The "world model" reads the blob off the last past frame, moves it by the actions (or by the
instruction, one of the four directions) and draws it again; its latents are the pictures. It has
the interface of ``VideoWorldModel``, so planners cannot tell the two apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

SIZE = 32
SPEED = 0.05
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def draw(positions: np.ndarray) -> np.ndarray:
    """Pictures ``(..., SIZE, SIZE, 3)`` of blobs at ``(..., 2)`` in 0..1."""
    grid = (np.arange(SIZE) + 0.5) / SIZE
    x = np.exp(-(((grid - positions[..., :1]) / 0.12) ** 2))
    y = np.exp(-(((grid - positions[..., 1:]) / 0.12) ** 2))
    image = np.rint(255 * y[..., :, None] * x[..., None, :]).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=-1)


def locate(frames: np.ndarray) -> np.ndarray:
    """Blob positions ``(..., 2)`` in 0..1: the centroid."""
    mass = frames[..., 0].astype(np.float64)
    grid = (np.arange(SIZE) + 0.5) / SIZE
    total = mass.sum((-1, -2))
    return np.stack([(mass.sum(-2) @ grid) / total, (mass.sum(-1) @ grid) / total], axis=-1)


class PointMassEnv(gym.Env[np.ndarray, np.ndarray]):
    """The real thing; the observation is the position, the camera is ``render``."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, render_mode: str | None = "rgb_array", num_steps: int = 24) -> None:
        self.render_mode = render_mode
        self.num_steps = num_steps
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = gym.spaces.Box(0, 1, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(0.4, 0.6, 2).astype(np.float32)
        self.step_count = 0
        return self.position.copy(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position = np.clip(self.position + SPEED * np.asarray(action), 0, 1).astype(np.float32)
        self.step_count += 1
        done = self.step_count >= self.num_steps
        return self.position.copy(), 0.0, done, False, self._info()

    def render(self) -> np.ndarray | None:
        return None if self.render_mode is None else draw(self.position)

    def _info(self) -> dict[str, Any]:
        return {"instruction": "right" if self.step_count < 4 else "down"}


class PointMassWorldModel:
    """Perfect dynamics, with noise of ``noise`` on each step of the imagined position."""

    device = torch.device("cpu")

    def __init__(self, noise: float = 0.0) -> None:
        self.config = SimpleNamespace(
            num_past_frames=4,
            num_future_frames=8,
            image_size=SIZE,
            action_low=[-1.0, -1.0],
            action_high=[1.0, 1.0],
            frame_skip=1,
            env_id=None,
            data_steps=None,
        )
        self.noise = noise
        self.batch_sizes: list[int] = []
        self.num_encoded = 0

    def without_memory(self) -> nullcontext[None]:
        return nullcontext()

    def encode(self, frames: np.ndarray) -> torch.Tensor:
        self.num_encoded += len(frames)
        return torch.from_numpy(frames.astype(np.float32) / 255).permute(0, 4, 1, 2, 3)

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        return (latents * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()

    def tokenize(self, instructions: list[str]) -> torch.Tensor:
        return torch.tensor([[list(DIRECTIONS).index(text)] for text in instructions])

    def encode_instructions(self, instructions: list[str]) -> torch.Tensor:
        ways = [DIRECTIONS.get(text, (0, 0)) for text in instructions]
        return torch.tensor(ways, dtype=torch.float32)[:, None]

    def __call__(
        self,
        past: np.ndarray | torch.Tensor,
        instruction: str | list[str | None] | None = None,
        actions: np.ndarray | torch.Tensor | None = None,
        num_frames: int | None = None,
        num_inference_steps: int = 4,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "np",
        common_noise: bool = False,
        samples_per_generator: int = 1,
    ) -> SimpleNamespace:
        self.batch_sizes.append(len(past))
        if actions is not None:
            num_frames = actions.shape[1]
        num_frames = num_frames or self.config.num_future_frames
        velocity = np.zeros((len(past), num_frames, 2))
        if actions is not None:
            velocity = np.asarray(actions, np.float64)
        else:
            texts = instruction if isinstance(instruction, list) else [instruction] * len(past)
            ways = np.array([DIRECTIONS.get(text or "", (0, 0)) for text in texts])
            velocity = velocity + ways[:, None]
        generators = generator if isinstance(generator, list) else [generator]
        share = len(past) // len(generators)
        shape = (1 if common_noise else share, num_frames, 2)
        noises = [randn_tensor(shape, generator=own).expand(share, -1, -1) for own in generators]
        noise = torch.cat(noises).numpy()
        frames = self.decode(past) if isinstance(past, torch.Tensor) else past
        start = locate(frames)[:, -1:]
        path = start + np.cumsum(SPEED * velocity + self.noise * noise, axis=1)
        frames = draw(np.clip(path, 0, 1))
        latents = self.encode(frames)
        return SimpleNamespace(latents=latents, frames=frames if output_type == "np" else None)


class PointMassOutcomeHead(torch.nn.Module):
    """Success is to be far in the direction that the instruction names; the reward is to go there.

    The log-odds of success are the way made from the picture's edge, the reward is 10 times the way
    made in a step.
    """

    def __init__(self, success_ends: bool = True) -> None:
        super().__init__()
        self.config = SimpleNamespace(success_ends=success_ends)

    def tokenize(self, world_model: PointMassWorldModel, instructions: list[str]) -> torch.Tensor:
        return world_model.tokenize(instructions)

    def forward(
        self, before: torch.Tensor, after: torch.Tensor, token_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        earlier, later = (self.success_logits(latents, token_ids) for latents in (before, after))
        return later, 10 * (later - earlier)

    def success_logits(self, latents: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        frames = (latents * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        ways = np.array(list(DIRECTIONS.values()))[token_ids[:, 0].numpy()]
        return torch.from_numpy((locate(frames) * ways).sum(-1))


class PointMassTemporalDistance(torch.nn.Module):
    """The frames that the point needs along its longer axis, in closed form."""

    def forward(self, latents: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
        here, there = (
            locate((255 * one).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
            for one in (latents, goals)
        )
        return torch.from_numpy(np.abs(there - here).max(-1) / SPEED)


class PointMassInverseDynamics:
    """The action that leads from one picture to the next."""

    def to(self, device: torch.device) -> PointMassInverseDynamics:
        return self

    def predict(self, frame: np.ndarray, next_frame: np.ndarray) -> np.ndarray:
        return ((locate(next_frame) - locate(frame)) / SPEED).astype(np.float32)


class RecordingMemory:
    """Keeps what it is told to learn."""

    num_past_frames = 4
    num_memories = 1

    def __init__(self, world_model: PointMassWorldModel) -> None:
        self.world_model = world_model
        self.enabled = True
        self.lived_by: list[object] = [None]
        self.num_resets = 0
        self.writes: list[tuple[np.ndarray, np.ndarray]] = []
        self.instructions: list[str] = []

    def reset(self, memories: Sequence[int]) -> None:
        assert list(memories) == [0]
        self.num_resets += 1
        self.writes.clear()

    def showing(self, memories: Sequence[int]) -> AbstractContextManager[None]:
        assert list(memories) == [0]
        return nullcontext()

    def write_batch(
        self,
        previous_chunks: np.ndarray,
        chunks: np.ndarray,
        instructions: Sequence[str],
        actions: np.ndarray,
        memories: Sequence[int],
        measure: bool,
    ) -> list[str]:
        assert not measure
        assert list(memories) == [0]
        assert len(previous_chunks) == len(chunks) == len(instructions) == len(actions) == 1
        assert len(actions[0]) == len(chunks[0])
        self.writes.append((previous_chunks[0], chunks[0]))
        self.instructions += instructions
        return [f"write {len(self.writes)}"]
