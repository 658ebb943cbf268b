"""All episodes of a store as flat tensors on one device, so that a batch is one gather."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.data.windows import load_all
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.pipeline import VideoWorldModel


@dataclass(frozen=True)
class FrameTable:
    """Frames of all episodes one after another; row `k` belongs to one frame.

    Attributes:
        frames: uint8 `(N, H, W, 3)`, or latents `(N, channels, h, w)` after `encoded`.
        actions: `(N, A)` in [-1, 1]; row `k` leads from frame `k` to `k + 1`, zero at an
            episode's last frame.
        rewards: `(N,)`, of action `k`, in the environment's units; zero at an episode's last frame.
        successes: `(N,)`, 1 where frame `k + 1` shows the command of action `k` achieved, 0 where
            not, -1 where the data does not tell and at an episode's last frame.
        instruction_ids: `(N,)`, index into `instructions` of the command in force on action `k`.
        remaining: `(N,)`, how many frames of the same episode follow frame `k`.
        elapsed: `(N,)`, how many steps before row `k` its instruction came into force.
        instructions: The distinct instructions; entry 0 is "", no instruction.
    """

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    successes: Tensor
    instruction_ids: Tensor
    remaining: Tensor
    elapsed: Tensor
    instructions: list[str]

    @classmethod
    def from_store(cls, store: EpisodeStore, device: torch.device | str) -> "FrameTable":
        """Read a whole store into memory.

        Raises:
            SfvgenError: The store is empty, damaged, or does not fit into memory.
        """
        arrays = load_all(store)
        low = np.asarray(store.spec.action_low, np.float32)
        high = np.asarray(store.spec.action_high, np.float32)
        actions = 2 * (arrays.actions - low) / (high - low) - 1
        instructions = ["", *(text for text in arrays.instructions if text)]
        ids = np.array([instructions.index(text) for text in arrays.instructions])
        rows = np.arange(len(arrays.frames))
        ends = np.repeat(arrays.offsets[1:], np.diff(arrays.offsets))
        begins = np.append(True, np.diff(arrays.instruction_ids) != 0)
        begins[arrays.offsets[:-1]] = True
        elapsed = rows - np.maximum.accumulate(np.where(begins, rows, 0))
        return cls(
            frames=torch.from_numpy(arrays.frames).to(device),
            actions=torch.from_numpy(actions).to(device),
            rewards=torch.from_numpy(arrays.rewards).to(device),
            successes=torch.from_numpy(arrays.successes).to(device),
            instruction_ids=torch.from_numpy(ids[arrays.instruction_ids]).to(device),
            remaining=torch.from_numpy(ends - 1 - rows).to(device),
            elapsed=torch.from_numpy(elapsed).to(device),
            instructions=instructions,
        )

    def instruction_ends(self) -> Tensor:
        """For each action the row of the frame at which its instruction is over, `(N,)`."""
        rows = torch.arange(len(self.remaining), device=self.remaining.device)
        is_last = torch.ones_like(rows, dtype=torch.bool)
        is_last[:-1] = (self.elapsed[1:] == 0) | (self.remaining[1:] == 0)
        ends = torch.where(is_last, rows + 1, len(rows))
        return ends.flip(0).cummin(0).values.flip(0)

    def window_starts(self, num_frames: int) -> Tensor:
        """Rows at which a window of `num_frames` frames of one episode can start, `(M,)`."""
        starts = torch.nonzero(self.remaining >= num_frames - 1).flatten()
        if len(starts) == 0:
            raise SfvgenError(
                f"no episode is as long as a training window of {num_frames} frames; "
                "collect longer episodes or shorten the window in the recipe"
            )
        return starts

    def require_several(self) -> int:
        """The number of episodes.

        Raises:
            SfvgenError: There is only one, so that none can be held out.
        """
        num_episodes = int((self.remaining == 0).sum())
        if num_episodes < 2:
            raise SfvgenError("one episode can't be held out of only one; collect more episodes")
        return num_episodes

    def split(self, every: int) -> tuple["FrameTable", "FrameTable"]:
        """Most episodes, and those that are held out: one in `every`, at least one.

        Raises:
            SfvgenError: There is only one episode.
        """
        num_episodes = self.require_several()
        is_last = self.remaining == 0
        episode = torch.cumsum(is_last, 0) - is_last.long()
        held_out = episode % min(every, num_episodes) == min(every, num_episodes) - 1

        def rows(chosen: Tensor) -> FrameTable:
            columns = [field.name for field in fields(self) if field.name != "instructions"]
            return replace(self, **{name: getattr(self, name)[chosen] for name in columns})

        return rows(~held_out), rows(held_out)

    @torch.no_grad()
    def encoded(self, model: VideoWorldModel, batch_size: int = 512) -> "FrameTable":
        """The same table with frozen-autoencoder latents instead of pixels."""
        latents = [
            model.encode(batch[None])[0].transpose(0, 1).to(torch.float16)
            for batch in self.frames.split(batch_size)
        ]
        return replace(self, frames=torch.cat(latents))
