"""Where imagined episodes begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from sfvgen_planner.data.camera import camera_frame
from sfvgen_planner.data.rollout import told_instruction
from sfvgen_planner.data.windows import WindowSource
from sfvgen_planner.errors import SfvgenError, require_count


@dataclass(frozen=True, eq=False)
class Start:
    """The moment at which an imagined episode begins.

    Attributes:
        frames: ``(f, H, W, 3)`` uint8, the last frames up to the present one, f >= 1.
        instruction: what the robot is told; empty where the task has no words.

    Raises:
        SfvgenError: where the frames have another type or shape.
    """

    frames: np.ndarray
    instruction: str = ""

    def __post_init__(self) -> None:
        frames = self.frames
        if frames.dtype != np.uint8 or frames.ndim != 4 or not len(frames) or frames.shape[3] != 3:
            raise SfvgenError(
                "an imagined episode must start from frames (f, H, W, 3) of uint8 with f >= 1, "
                f"got {frames.shape} of {frames.dtype}"
            )


class Starts(Protocol):
    """Chooses where an imagined episode begins; any function of this kind will do."""

    def __call__(self, rng: np.random.Generator) -> Start:
        """Draw a start; all randomness comes from ``rng``."""


class EnvStarts:
    """Begin as a real environment begins: its first camera frame and its instruction.

    Args:
        env: a Gymnasium environment with a camera (see :func:`sfvgen_planner.data.camera_frame`).
        image_size: height and width of the frames; None keeps the camera's own.
    """

    def __init__(self, env: gym.Env[Any, Any], image_size: int | None = None) -> None:
        self.env = env
        self.image_size = image_size

    def __call__(self, rng: np.random.Generator) -> Start:
        """Reset the environment with a seed from ``rng``."""
        observation, info = self.env.reset(seed=int(rng.integers(2**31)))
        # An environment may draw the next frame into the same memory.
        frame = camera_frame(self.env, observation, self.image_size).copy()
        return Start(frame[None], told_instruction(info))


class StoreStarts:
    """Begin in the midst of recorded episodes, at any frame that was acted on, equally likely.

    Args:
        store: an ``EpisodeStore``, or ``EpisodeArrays``, which are faster.
        num_past_frames: frames to begin with, fewer near an episode's beginning; the model's f_p.

    Raises:
        SfvgenError: where the store is empty or ``num_past_frames`` is below 1.
    """

    def __init__(self, store: WindowSource, num_past_frames: int) -> None:
        require_count("num_past_frames", num_past_frames)
        self.store = store
        self.num_past_frames = num_past_frames
        self._ends = np.cumsum(store.num_steps)
        if not len(self._ends):
            raise SfvgenError("imagined episodes cannot start from a store without episodes")

    def __call__(self, rng: np.random.Generator) -> Start:
        """Draw an episode and a frame of it."""
        row = int(rng.integers(self._ends[-1]))
        index = int(np.searchsorted(self._ends, row, side="right"))
        present = row - int(self._ends[index - 1] if index else 0)
        first = max(0, present + 1 - self.num_past_frames)
        # One frame more, because instructions stand between frames.
        window = self.store.window(index, first, present + 2 - first)
        return Start(window.frames[:-1], window.instructions[-1])
