"""Episodic memory, the fast weights of episodes (paper section 3.2, Eq. 3, Algorithm 1a)."""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from sfvgen_planner.errors import SfvgenError, require, require_count
from sfvgen_planner.memory.adapter import Adapters, FastWeights
from sfvgen_planner.memory.adapter_files import (
    COUNTER,
    SLOW_WEIGHTS,
    read_adapter,
    trained_adapter,
    write_adapter,
)
from sfvgen_planner.memory.config import MemoryConfig
from sfvgen_planner.memory.fingerprint import slow_fingerprint
from sfvgen_planner.memory.indices import checked_indices
from sfvgen_planner.memory.measured_learning import MeasuredLearner
from sfvgen_planner.memory.memory_write import MemoryWrite
from sfvgen_planner.memory.shown_memories import ShownMemories
from sfvgen_planner.memory.write_batches import WriteBatches, check_array
from sfvgen_planner.world_model import VideoWorldModel
from sfvgen_planner.world_model.checkpoint import MEMORY_FOLDER
from sfvgen_planner.world_model.sampling import nothing_to_show

logger = logging.getLogger(__name__)

_HISTORY = "history"
_NO_FAST_WEIGHTS = (COUNTER, SLOW_WEIGHTS, _HISTORY)
"""What a state tells beside the fast weights."""
_ANOTHERS = (
    "this memory belongs to another model, rank or set of layers; load it with the settings it was "
    "made with"
)


class EpisodicMemory:
    """Low-rank adapters on a world model's temporal layers, learnt while episodes happen.

    Attached to the model from construction until `detach`. Each `write` noises the previous
    chunk and the chunk together, with no clean frame, no text and no action, and takes a few
    steps on the denoising loss of the whole sequence; only the adapters change. They carry over
    from chunk to chunk; `reset` starts a new episode. A memory that has written nothing is not
    seen: the model then is the slow model.

    Several memories, one for each of several environments, are written in one batched call and
    seen in one: a batch of `num_memories * S` samples is imagined with S samples for each, in
    the memories' order; `showing` lets only some of them imagine.

    A write takes gradients through the whole denoiser. With a large one call
    `sfvgen_planner.world_model.gradient_checkpointing.enable_gradient_checkpointing(model.unet)`
    first: writes then take little more memory than imagining.
    Where the model was compiled for a GPU, writes are launched as CUDA graphs, from the second one
    of as many memories and frames on.

    Args:
        world_model: The model whose `unet` gets the adapters; its own weights are frozen until
            `detach`. It is on its device and in its precision already.
        config: What the memory is and how it learns; by default the paper's TEMP-LoRA.
        num_memories: How many episodes are remembered at a time.
        seed: Seed of the adapters' start and of the writes' noise.

    Attributes:
        lived_by: Which env's episode each memory has; set by imagining envs at their reset.

    Raises:
        SfvgenError: The settings match no layer, or the model has a memory already.
    """

    def __init__(
        self,
        world_model: VideoWorldModel,
        config: MemoryConfig | None = None,
        num_memories: int = 1,
        seed: int = 0,
    ) -> None:
        require_count("num_memories", num_memories)
        self.world_model = world_model
        self.config = config or MemoryConfig()
        self.num_memories = num_memories
        self.seed = seed
        learning = (world_model.unet, world_model.text_encoder)
        self._to_unfreeze = [p for part in learning for p in part.parameters() if p.requires_grad]
        self._adapters = Adapters(world_model, self.config, seed)
        self._batches = WriteBatches(world_model, self.config)
        self._learner = MeasuredLearner(world_model, self._adapters, self.config)
        self._enabled, self._detached = True, False
        try:
            self.lived_by: list[object | None] = [None] * num_memories
            self._visible = list(range(num_memories))
            self._adapters.freeze()
            for part in learning:
                part.requires_grad_(False)
            # Learnt in single precision: steps are small.
            self._fast: FastWeights = {
                name: value.detach().float().clone()
                for name, value in self._adapters.start(num_memories).items()
            }
            self._shown = ShownMemories(world_model, self._adapters, self._fast)
            world_model.show_memory = self._place
            self.reset()
        except BaseException:
            # So many may be too many for the device; the model stays as it was.
            self.detach()
            raise

    @classmethod
    def from_pretrained(
        cls,
        world_model: VideoWorldModel,
        name_or_path: str | PathLike[str] | None = None,
        num_memories: int = 1,
        seed: int = 0,
        num_noise_draws: int | None = None,
    ) -> Self:
        """The memory that a checkpoint's slow weights were trained with.

        Args:
            world_model: The checkpoint's model.
            name_or_path: Name of a shipped model, a checkpoint folder or a Hub id
                (`user/name@revision`); by default the folder that the model was loaded from. One
                that has been through no slow-fast loop gets the paper's TEMP-LoRA.
            num_memories: How many episodes are remembered at a time.
            seed: Seed of the writes' noise.
            num_noise_draws: Noise levels averaged in each step of a write, if not as many as the
                checkpoint's memory has; fewer make a write cheaper.

        Raises:
            SfvgenError: There is no such checkpoint, its memory is broken or another model's, or
                none was named and the model was loaded from no folder.
        """
        if name_or_path is None:
            name_or_path = world_model.name_or_path
        if name_or_path is None:
            raise SfvgenError(
                "this model was loaded from no folder; name the checkpoint whose memory it takes"
            )
        trained = trained_adapter(name_or_path)
        config = MemoryConfig() if trained is None else trained.config
        if trained is not None:
            trained.require_fits(world_model.unet)
        if num_noise_draws is not None:
            config = replace(config, num_noise_draws=num_noise_draws)
        memory = cls(world_model, config, num_memories, seed)
        if trained is not None:
            try:
                memory._load_slow(trained.tensors)
                memory.reset()
            except BaseException:
                memory.detach()
                raise
        return memory

    # ---------------------------------------------------------------- life of an episode

    @torch.no_grad()
    def reset(self, memories: Sequence[int] | None = None) -> None:
        """Forget everything, so that the model is the slow model again.

        Args:
            memories: Which ones; all by default.

        Raises:
            SfvgenError: There are no such memories, or the memory was detached.
        """
        self._check_attached()
        fresh = self._adapters.start(self.num_memories)
        if memories is None:
            for name, value in fresh.items():
                self._fast[name].copy_(value)
            self._num_writes = [0] * self.num_memories
            self._history: list[list[Tensor]] = [[] for _ in range(self.num_memories)]
        else:
            for index in self._checked(memories):
                for name, value in fresh.items():
                    self._fast[name][index] = value[index]
                self._num_writes[index] = 0
                self._history[index] = []
        self._place()

    def write(
        self,
        previous_chunk: np.ndarray | Tensor,
        chunk: np.ndarray | Tensor,
        instruction: str = "",
        actions: np.ndarray | Tensor | None = None,
        measure: bool = True,
    ) -> MemoryWrite:
        """Fast-learn one chunk of the only episode: `write_batch` without the leading axis."""
        past, future = check_array(previous_chunk)[None], check_array(chunk)[None]
        given = None if actions is None else torch.as_tensor(actions)[None]
        return self.write_batch(past, future, [instruction], given, measure=measure)[0]

    @torch.inference_mode(False)
    def write_batch(
        self,
        previous_chunks: np.ndarray | Tensor,
        chunks: np.ndarray | Tensor,
        instructions: Sequence[str] | None = None,
        actions: np.ndarray | Tensor | None = None,
        memories: Sequence[int] | None = None,
        measure: bool = True,
    ) -> list[MemoryWrite]:
        """Fast-learn one chunk of each episode (Eq. 3), all in one batch.

        Args:
            previous_chunks: X_i, uint8 `(memories, frames, H, W, 3)` or latents
                `(memories, channels, frames, h, w)`; the last f_p frames count, and where there
                are fewer, the world stood still before the first.
            chunks: Y_i, in the same form.
            instructions: One each, for a `conditioned` memory; others learn without any.
            actions: `(memories, frames of the chunk, A)` in the environment's units, likewise.
            memories: Which ones are written; all by default.
            measure: Compute the losses, for two further calls of the denoiser; else they are NaN.

        Raises:
            SfvgenError: An argument has the wrong type, shape or size, the memory was detached, or
                what it would learn is not finite; what was held is kept then.
        """
        self._check_attached()
        start = time.perf_counter()
        indices = self._checked(range(self.num_memories) if memories is None else memories)
        windows = self._batches.windows(previous_chunks, chunks, len(indices))
        template = self._batches.without_noise(windows, instructions, actions)
        histories = None
        if self.config.whole_history:
            histories = [
                [*self._history[index], window.cpu()]
                for index, window in zip(indices, windows, strict=True)
            ]
        num_writes = [self._num_writes[index] for index in indices]
        seeds = [self.seed * 1_000_003 + written for written in num_writes]
        batches = self._batches.steps(template, seeds, histories)
        # The present chunks with the first step's noise.
        probe = batches[0]._replace(latents=template.latents) if measure else None
        rows = torch.tensor(indices, device=windows.device)
        written = torch.tensor(num_writes, device=windows.device)
        before = self._fast
        if indices != list(range(self.num_memories)):
            before = {name: value[rows] for name, value in self._fast.items()}
        self._adapters.place(None)
        try:
            learnt, losses = self._learner.learn(before, written, batches, probe)
            table = losses.tolist()
            # The largest of all numbers, so that a GPU is waited for once.
            largest = nn.utils.get_total_norm(list(learnt.values()), float("inf"))
            require(
                math.isfinite(largest.item()),
                "what this write would learn is not finite, so what the memories held is kept; "
                "lower the memory's learning_rate, or run the model in bfloat16 or float32",
            )
            for name, value in learnt.items():
                self._fast[name][rows] = value.detach()
            for place, index in enumerate(indices):
                self._num_writes[index] += 1
                if histories is not None:
                    self._history[index] = histories[place]
        finally:
            self._place()
        seconds = time.perf_counter() - start
        writes = [MemoryWrite(without, before, after, seconds) for without, before, after in table]
        for index, write in zip(indices, writes, strict=True):
            told = (
                f"loss {write.loss_without:.4f} without memory, {write.loss_before:.4f} before, "
                f"{write.loss_after:.4f} after"
            )
            logger.info(
                "memory %d, chunk %d: %s",
                index,
                self._num_writes[index],
                told if measure else f"written in {seconds:.3f} s",
            )
        return writes

    @property
    def num_writes(self) -> list[int]:
        """Chunks that each memory has written since its reset."""
        return list(self._num_writes)

    @property
    def num_past_frames(self) -> int:
        """Frames of context in writing and imagining: the model's f_p, unless set shorter."""
        return self._batches.num_past_frames

    @property
    def enabled(self) -> bool:
        """Whether the model sees the memory; switching it off keeps what was learnt."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._check_attached()
        self._enabled = value
        self._place()

    @contextmanager
    def showing(self, memories: Sequence[int]) -> Iterator[None]:
        """Let the model see only some of the memories for as long as the context lasts.

        Inside it a batch of `len(memories) * S` samples is imagined, S for each memory in the order
        given; so environments that imagine nothing now cost nothing.

        Args:
            memories: Which ones.

        Raises:
            SfvgenError: There are no such memories, or one is named twice.
        """
        self._check_attached()
        before, self._visible = self._visible, self._checked(memories)
        try:
            if self._visible != before:
                self._place()
            yield
        finally:
            changed, self._visible = self._visible != before, before
            if changed:
                self._place()

    def detach(self) -> None:
        """Take the adapters out of the model again; this memory can't be used afterwards."""
        if self._detached:
            # The model may have another memory by now.
            return
        self.world_model.num_memories, self.world_model.show_memory = 1, nothing_to_show
        self._adapters.detach()
        for parameter in self._to_unfreeze:
            parameter.requires_grad_(True)
        self._learner.release()
        self._detached = True

    # ---------------------------------------------------------------- state

    def state(self, index: int = 0) -> dict[str, Tensor]:
        """A copy of all that `write` changed: tensors under PEFT's names, the number of writes.

        With it goes a checksum of the slow weights and codes that it belongs to.

        Raises:
            SfvgenError: There is no such memory, or the memory was detached.
        """
        self._check_attached()
        self._checked([index])
        state = {name: value[index].cpu().clone() for name, value in self._fast.items()}
        state[COUNTER] = torch.tensor(self._num_writes[index])
        state[SLOW_WEIGHTS] = self._slow_weights.clone()
        if self._history[index]:
            state[_HISTORY] = torch.stack(self._history[index])
        return state

    def _takes(self, state: dict[str, Tensor]) -> bool:
        """Whether `state` is one of as many layers, of this rank and size."""
        own = {name: value.shape[1:] for name, value in self._fast.items()}
        return own == {
            name: tensor.shape for name, tensor in state.items() if name not in _NO_FAST_WEIGHTS
        }

    def load(self, state: dict[str, Tensor], index: int = 0) -> None:
        """Put back what `state` gave.

        Raises:
            SfvgenError: The state is that of other slow weights, other layers or another rank, it
                is not whole, there is no such memory, or the memory was detached.
        """
        self._check_attached()
        self._checked([index])
        require(
            COUNTER in state,
            f"this is no whole state of a memory: it lacks {COUNTER}; give what state() gave",
        )
        require(self._takes(state), _ANOTHERS)
        # A file's state was compared as it was read; those of older banks tell nothing.
        require(
            SLOW_WEIGHTS not in state or torch.equal(state[SLOW_WEIGHTS].cpu(), self._slow_weights),
            "this memory was learnt with other slow weights or codes than this one's; load it into "
            "a memory of the model, and of the seed, that it was learnt with",
        )
        require(
            all(bool(state[name].isfinite().all()) for name in self._fast),
            "this memory has numbers that are not finite; load one that was written whole",
        )
        for name, value in self._fast.items():
            value[index] = state[name].to(value)
        self._num_writes[index] = int(state[COUNTER])
        self._history[index] = list(state.get(_HISTORY, ()))
        self._place()

    def save_pretrained(self, folder: str | PathLike[str], index: int = 0) -> None:
        """Write one memory as a PEFT adapter folder, with its counter.

        `peft` by itself reads the low-rank factors, which are all of the paper's memory; codes and
        tables, which ours has too, it passes over, and is another model then.

        Raises:
            SfvgenError: There is no such memory, the memory was detached, or the folder can't be
                written.
        """
        state = self.state(index)
        num_writes = int(state.pop(COUNTER))
        del state[SLOW_WEIGHTS]  # The file's own settings tell it.
        write_adapter(
            Path(folder), self._adapters, {**self._adapters.tensors(), **state}, num_writes
        )

    def load_pretrained(self, folder: str | PathLike[str], index: int = 0) -> None:
        """Read what `save_pretrained` wrote.

        Raises:
            SfvgenError: The folder is missing, broken, or belongs to another model.
        """
        saved = read_adapter(Path(folder))
        saved.require_fits(self.world_model.unet)
        slow = self._adapters.tensors()
        own = {name: value for name, value in slow.items() if name not in self._fast}
        require(saved.holds(own), _ANOTHERS)
        names = [*self._fast, _HISTORY]
        state = {name: value for name, value in saved.tensors.items() if name in names}
        self.load({**state, COUNTER: torch.tensor(saved.num_writes)}, index)

    @cached_property  # They are frozen.
    def _slow_weights(self) -> Tensor:
        """`slow_fingerprint` of the denoiser and the adapters, as bytes."""
        digest = bytes.fromhex(slow_fingerprint(self.world_model.unet, with_adapters=True))
        return torch.tensor(list(digest), dtype=torch.uint8)

    def _load_slow(self, tensors: dict[str, Tensor]) -> None:
        """The adapters' parameters as the slow-fast loop left them."""
        own = {name: value.shape for name, value in self._adapters.tensors().items()}
        if own != {name: value.shape for name, value in tensors.items()}:
            raise SfvgenError(
                f"the checkpoint's {MEMORY_FOLDER} folder belongs to another model; copy the "
                "whole checkpoint again"
            )
        self._adapters.load(tensors)

    # ---------------------------------------------------------------- what the model sees

    def _place(self) -> None:
        """Show the model what the visible memories hold, if any of them has written."""
        counts = [self._num_writes[index] for index in self._visible]
        seen = self._enabled and any(counts) and not self.world_model.memory_hidden
        self.world_model.num_memories = len(counts) if seen else 1
        if seen:
            self._shown.show(self._fast, self._visible, counts)
        else:
            self._adapters.place(None)

    def _check_attached(self) -> None:
        require(not self._detached, "this memory was detached: make a new one")

    def _checked(self, memories: Iterable[int]) -> list[int]:
        return checked_indices(memories, self.num_memories)
