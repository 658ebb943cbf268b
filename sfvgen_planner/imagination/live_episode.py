"""The episode that an env is in, as its world model and its memory see it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sfvgen_planner.errors import SfvgenError

if TYPE_CHECKING:
    import torch

    from sfvgen_planner.memory import EpisodeWriter, MemoryWrite


class LivedChunk(NamedTuple):
    """A chunk that has just become complete.

    Attributes:
        past_and_chunk: ``(f + F, H, W, 3)`` uint8, the frames of the chunk and up to
            ``num_past_frames`` before it.
        actions: ``(F, A)`` float32, what was done before each frame of the chunk.
        instructions: those that were followed, one for each.
    """

    past_and_chunk: np.ndarray
    actions: np.ndarray
    instructions: list[str]


class LiveEpisode:
    """The frames, actions and instructions since a reset, grouped into the model's chunks.

    Args:
        num_past_frames: frames before a chunk that belong to it.
        num_future_frames: F, frames of a chunk.
        instruction: the one that is followed next.

    Attributes:
        num_steps: since the reset.
        memory_writes: what each write of the memory did.
        recording: where a bank keeps the episode, if one does.
        past_latents: ``(1, C, f, h, w)``, what imagination starts from, where it was encoded since
            the latest frame.
    """

    def __init__(self, num_past_frames: int, num_future_frames: int, instruction: str = "") -> None:
        self.num_steps = 0
        self.memory_writes: list[MemoryWrite] = []
        self.recording: EpisodeWriter | None = None
        self.past_latents: torch.Tensor | None = None
        self._chunk_size = num_future_frames
        self._frames: deque[np.ndarray] = deque(maxlen=num_past_frames + num_future_frames)
        self._chunk: list[tuple[np.ndarray, str]] = []
        self._instruction = instruction

    @property
    def has_begun(self) -> bool:
        """Whether anything has been observed."""
        return bool(self._frames)

    @property
    def is_chunk_complete(self) -> bool:
        """Whether :meth:`take_chunk` is due."""
        return len(self._chunk) == self._chunk_size

    def observe(self, frame: np.ndarray) -> None:
        """See a frame ``(H, W, 3)`` uint8."""
        # An environment may draw the next frame into the same memory.
        self._frames.append(frame.copy())
        self.past_latents = None

    def step(self, action: np.ndarray, frame: np.ndarray, instruction: str) -> None:
        """Go on by a step.

        Args:
            action: ``(A,)`` float32, what was done.
            frame: ``(H, W, 3)`` uint8, what was seen then.
            instruction: what is to be followed from now on.
        """
        self.num_steps += 1
        self.observe(frame)
        self._chunk.append((action, self._instruction))
        self._instruction = instruction

    def last_frames(self, num_frames: int) -> np.ndarray:
        """The last observed frames ``(f, H, W, 3)`` uint8, f from 1 to ``num_frames``.

        Raises:
            SfvgenError: where nothing has been observed.
        """
        if not self._frames:
            raise SfvgenError("nothing has been observed yet: call reset() first")
        return np.stack(list(self._frames)[-num_frames:])

    def take_chunk(self) -> LivedChunk:
        """The chunk that is complete; the next one begins."""
        actions, instructions = zip(*self._chunk, strict=True)
        self._chunk = []
        return LivedChunk(np.stack(self._frames), np.stack(actions), list(instructions))

    def end(self) -> None:
        """End the recording, if there is one."""
        if self.recording is not None:
            self.recording.close()
            self.recording = None
