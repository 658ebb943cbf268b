"""One episode of a memory bank: a folder with a file for its start and one for every chunk.

A file holds the chunk's frames, actions and instructions together with the memory after it, so
that none of them can be there without the others.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.files import replacing, writing_errors

logger = logging.getLogger(__name__)

_START_FILE = "start.safetensors"
_CHUNK_PREFIX = "chunk_"
# Safetensors gives the last where a file vanishes as it is opened.
_READING_ERRORS = (OSError, SafetensorError, RuntimeError)
_MEMORY_PREFIX = "memory."
_FOLDER_NAME = re.compile(r"\d{8,}")


@dataclass(frozen=True, eq=False)
class BankChunk:
    """What one chunk added to its episode.

    Attributes:
        frames: ``(F, H, W, 3)`` uint8.
        actions: ``(F, A)`` float32 in env units; action k led to frame k.
        instructions: F strings, the one in force when each action was chosen; may be empty.
    """

    frames: np.ndarray
    actions: np.ndarray
    instructions: list[str]


def episode_folder(number: int) -> str:
    """Name of the folder of an episode."""
    return f"{number:08d}"


def is_episode_folder(name: str) -> bool:
    """Whether a name is one of `episode_folder`."""
    return _FOLDER_NAME.fullmatch(name) is not None


class BankEpisode:
    """An episode on disk; nothing but its number of chunks is kept in memory.

    Attributes:
        number: age in the bank, counted from its first episode ever.
        model: fingerprint of the model that its memory was learnt on.
        path: its folder.
    """

    def __init__(self, path: Path, model: str, expected_model: str) -> None:
        """Use a `MemoryBank` instead."""
        self.path = path
        self.number = int(path.name)
        self.model = model
        self._expected_model = expected_model
        self._num_chunks = 0
        self.refresh()

    @classmethod
    def found(cls, path: Path, expected_model: str) -> Self | None:
        """The episode in a folder, None where it has no complete chunk or is no episode's."""
        if not is_episode_folder(path.name):
            return None
        try:
            with safe_open(path / _START_FILE, framework="pt") as file:
                model = file.metadata()["model"]
            episode = cls(path, model, expected_model)
        except (*_READING_ERRORS, ValueError, KeyError, TypeError):
            return None
        return episode if len(episode) else None

    def refresh(self) -> None:
        """Look for further chunks: complete files, up to the first that is missing or damaged."""
        while True:
            file = self._chunk_file(self._num_chunks)
            try:
                # Opening compares the file's size with what its header promises.
                with safe_open(file, framework="pt"):
                    pass
            except FileNotFoundError:
                return
            except _READING_ERRORS as error:
                logger.warning("%s: left out from here on (%s)", file, error)
                return
            self._num_chunks += 1

    def __len__(self) -> int:
        """Number of chunks."""
        return self._num_chunks

    def first_frame(self) -> np.ndarray:
        """The frame before the first chunk, ``(H, W, 3)`` uint8."""
        return read_tensors(self.path / _START_FILE, ["frame"])["frame"].numpy()

    def first_latents(self) -> Tensor:
        """Latents ``(channels, h, w)`` of the first frame."""
        return read_tensors(self.path / _START_FILE, ["latents"])["latents"]

    def chunk(self, index: int) -> BankChunk:
        """Read a chunk, without its memory; -1 is the last.

        Raises:
            IndexError: there is no such chunk.
            SfvgenError: its file is damaged, or was dropped in the meantime.
        """
        file = self._chunk_file(self._index(index))
        tensors = read_tensors(file, ["frames", "actions"])
        with safe_open(file, framework="pt") as opened:
            instructions = json.loads(opened.metadata()["instructions"])
        return BankChunk(tensors["frames"].numpy(), tensors["actions"].numpy(), instructions)

    def state(self, index: int = -1) -> dict[str, Tensor]:
        """Read the memory after a chunk, for ``EpisodicMemory.load``.

        Raises:
            IndexError: there is no such chunk.
            SfvgenError: it belongs to another model, its file is damaged, or was dropped.
        """
        require(
            self.model == self._expected_model,
            f"the memory of {self.path} was learnt on other slow weights (model "
            f"{self.model[:12]}, this is {self._expected_model[:12]}); load the model that it "
            "was made with",
        )
        tensors = read_tensors(self._chunk_file(self._index(index)))
        return {
            name.removeprefix(_MEMORY_PREFIX): tensor
            for name, tensor in tensors.items()
            if name.startswith(_MEMORY_PREFIX)
        }

    def _index(self, index: int) -> int:
        return range(self._num_chunks)[index]

    def _chunk_file(self, index: int) -> Path:
        return self.path / f"{_CHUNK_PREFIX}{index:05d}.safetensors"


class EpisodeWriter:
    """Adds the chunks of one episode to a bank as they happen.

    Attributes:
        path: the episode's folder.
    """

    def __init__(
        self,
        path: Path,
        frame: np.ndarray,
        latents: Tensor,
        model: str,
        on_chunk: Callable[[], None],
        on_close: Callable[[], None],
    ) -> None:
        """Use `MemoryBank.begin` instead."""
        self.path = path
        self._frame_shape = frame.shape
        self._num_chunks = 0
        self._on_chunk = on_chunk
        self._on_close: Callable[[], None] | None = on_close
        tensors = {"frame": torch.from_numpy(frame.copy()), "latents": latents.contiguous()}
        _save(path / _START_FILE, tensors, {"model": model})

    def append(
        self,
        frames: np.ndarray,
        actions: np.ndarray,
        instructions: Sequence[str],
        state: dict[str, Tensor],
    ) -> None:
        """Add a chunk; it is on disk when this returns.

        Args:
            frames: ``(F, H, W, 3)`` uint8.
            actions: ``(F, A)`` float32 in env units; action k led to frame k.
            instructions: F strings.
            state: what ``EpisodicMemory.state`` gives after the chunk was written to it.

        Raises:
            SfvgenError: the parts do not fit each other, the episode is closed, or the disk is
                full. Then the chunks before this one stay and the episode is closed: a chunk that
                came later would look as if it followed on them.
        """
        require(self._on_close is not None, f"the recording of {self.path} is closed")
        require(
            frames.dtype == np.uint8 and frames.shape[1:] == self._frame_shape and len(frames) > 0,
            f"a chunk's frames must be uint8 of shape (F, {', '.join(map(str, self._frame_shape))})"
            f", got {frames.dtype} of shape {frames.shape}",
        )
        require(
            actions.ndim == 2 and len(actions) == len(instructions) == len(frames),
            f"{len(frames)} frames need as many actions (F, A) and instructions, got actions of "
            f"shape {actions.shape} and {len(instructions)} instructions",
        )
        tensors = {
            "frames": torch.from_numpy(np.array(frames)),
            "actions": torch.from_numpy(np.array(actions, np.float32)),
        }
        tensors |= {_MEMORY_PREFIX + name: value.contiguous() for name, value in state.items()}
        file = self.path / f"{_CHUNK_PREFIX}{self._num_chunks:05d}.safetensors"
        try:
            _save(file, tensors, {"instructions": json.dumps(list(instructions))})
        except SfvgenError:
            self.close()
            raise
        self._num_chunks += 1
        self._on_chunk()

    def close(self) -> None:
        """End the episode; from now on others may start from it. One without chunks is dropped."""
        if self._on_close is not None:
            self._on_close()
            self._on_close = None


def is_unfinished(folder: Path) -> bool:
    """Whether an episode's folder holds no chunk yet, and nothing that a bank does not write.

    Raises:
        OSError: The folder can't be read.
    """
    names = {file.name for file in folder.iterdir()}
    return all(name == _START_FILE or _is_temporary(name) for name in names)


def remove_temporary(folder: Path) -> None:
    """Remove the half-written files that a killed process left in an episode's folder.

    Raises:
        OSError: The folder can't be read, or not be written to.
    """
    for file in list(folder.iterdir()):
        if _is_temporary(file.name):
            file.unlink()


def _is_temporary(name: str) -> bool:
    return name.startswith((f".{_START_FILE}.", f".{_CHUNK_PREFIX}"))


def folder_bytes(folder: Path) -> int:
    """Size of the files in a folder, without those that are dropped meanwhile."""
    size = 0
    for file in folder.glob("*"):
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    return size


def read_tensors(path: Path, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Read some of the tensors of a safetensors file, all by default.

    Raises:
        SfvgenError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            wanted = file.keys() if names is None else names
            return {name: file.get_tensor(name) for name in wanted}
    except _READING_ERRORS as error:
        raise SfvgenError(
            f"{path} cannot be read ({error}); it was dropped from the bank in the meantime or is "
            "damaged: open the bank anew"
        ) from error


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    with writing_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata)
            _sync(temporary)
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
