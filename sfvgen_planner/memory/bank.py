"""The memory bank: what past episodes showed, and what the fast weights had learnt from them."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

import numpy as np
import torch
from torch import Tensor

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.files import lock, prepare_folder, write_json
from sfvgen_planner.memory.bank_episode import (
    BankEpisode,
    EpisodeWriter,
    episode_folder,
    folder_bytes,
    is_episode_folder,
    is_unfinished,
    remove_temporary,
)
from sfvgen_planner.memory.fingerprint import fingerprint
from sfvgen_planner.world_model import VideoWorldModel

logger = logging.getLogger(__name__)

FORMAT = "sfvgen-memory-bank"
VERSION = 1
_DESCRIPTION_FILE = "bank.json"
_LOCK_FILE = "writer.lock"
_DROPPED_PREFIX = ".dropped-"


@dataclass(frozen=True)
class NearestMemory:
    """An earlier episode that began like the present one.

    Attributes:
        episode: the episode.
        distance: root mean square difference between the latents of the two first frames; about
            1.5 between unrelated pictures, 0 between equal ones.
        is_same_scene: whether the distance is below the bank's threshold.
    """

    episode: BankEpisode
    distance: float
    is_same_scene: bool

    def state(self) -> dict[str, Tensor]:
        """The memory that the episode ended with, for ``EpisodicMemory.load``."""
        return self.episode.state()


class MemoryBank:
    """Episodes with the memory after each of their chunks, in a folder (paper, Algorithm 1b).

    Every chunk is one safetensors file that appears in full or not at all, so a process that is
    killed at any moment loses at most the chunk that it was writing. One process may append while
    others read; a reader sees the episodes that were there when it opened the bank.

    Where ``max_bytes`` is exceeded, whole episodes are dropped, oldest first, but never one that
    is being written: a limit smaller than that one episode is exceeded by it alone.

    Args:
        path: the folder; made where it is missing.
        world_model: the model that the memories belong to. A bank can hold memories of several
            models, or of one at several moments of its training, but gives out only those that
            were learnt on these weights, loaded in any precision, the trained parts of adapters
            included. So attach the memory before the bank is opened, and open it anew after slow
            learning.
        max_bytes: size limit of the folder's files; None for none.
        same_scene_distance: see `nearest`.
        mode: ``"a"`` to read and append, ``"r"`` to read an existing bank.

    Raises:
        SfvgenError: there is no bank, another version's, or no way to write; or (``"a"``) another
            process appends to it.

    Example:
        >>> from sfvgen_planner.data.environment import make_env
        >>> from sfvgen_planner.imagination import ImaginationWrapper
        >>> from sfvgen_planner.memory import EpisodicMemory
        >>> from sfvgen_planner.world_model import load_world_model
        >>> model = load_world_model()
        >>> memory = EpisodicMemory.from_pretrained(model)
        >>> bank = MemoryBank(Path("bank"), model, max_bytes=10**9)
        >>> env = make_env("sfvgen/TabletopReturn-v0")
        >>> env = ImaginationWrapper(env, model, memory, bank=bank)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        world_model: VideoWorldModel,
        max_bytes: int | None = None,
        same_scene_distance: float = 0.9,
        mode: Literal["r", "a"] = "a",
    ) -> None:
        require(mode in ("r", "a"), f"mode must be 'r' or 'a', got {mode!r}")
        require(max_bytes is None or max_bytes > 0, f"max_bytes must be positive, got {max_bytes}")
        require(
            same_scene_distance >= 0,
            f"same_scene_distance must not be negative, got {same_scene_distance}",
        )
        self.path = Path(path)
        self.mode = mode
        self.world_model = world_model
        self.max_bytes = max_bytes
        self.same_scene_distance = same_scene_distance
        self.model_fingerprint = fingerprint(world_model)
        self._process = os.getpid()
        self._lock: IO[str] | None = None
        self._writers: dict[int, EpisodeWriter] = {}
        self._first_latents: dict[int, Tensor] = {}
        if mode == "a":
            self._prepare()
            self._lock = self._locked()
        try:
            if mode == "a":
                self._describe()
            self._check_description()
            if mode == "a":
                self._clean()
            self._find_episodes()
        except BaseException:
            if self._lock is not None:
                self._lock.close()
            raise

    def _find_episodes(self) -> None:
        folders = sorted(self._episodes_folder.glob("*"))
        self._episodes = {
            episode.number: episode
            for folder in folders
            if (episode := BankEpisode.found(folder, self.model_fingerprint)) is not None
        }
        self._bytes = {
            number: folder_bytes(episode.path) for number, episode in self._episodes.items()
        }
        # Episodes that can't be read keep their numbers.
        numbers = [int(folder.name) for folder in folders if is_episode_folder(folder.name)]
        self._next_number = max(numbers, default=-1) + 1
        foreign = sum(not self._is_of_model(number) for number in self._episodes)
        if foreign:
            logger.warning(
                "%s: %d of %d episodes are of other weights; they are not recalled",
                self.path,
                foreign,
                len(self._episodes),
            )
        if self.mode == "a":
            self._enforce_limit()

    # ---------------------------------------------------------------- reading

    def __len__(self) -> int:
        """Number of episodes that have at least one chunk."""
        return len(self._episodes)

    def __iter__(self) -> Iterator[BankEpisode]:
        """The episodes, oldest first; their data is read when it is asked for."""
        return iter(list(self._episodes.values()))

    def __getitem__(self, index: int) -> BankEpisode:
        """The episode at a place in the order of age; -1 is the newest.

        Raises:
            IndexError: there is no such episode.
        """
        return list(self._episodes.values())[index]

    @property
    def num_bytes(self) -> int:
        """Size of all episodes on disk."""
        return sum(self._bytes.values())

    def nearest(self, frame: np.ndarray) -> NearestMemory | None:
        """The finished episode of this model whose first frame is most like ``frame``.

        Pictures are compared by their latents, cell by cell, so that objects count by where they
        are. Below ``same_scene_distance`` the scene counts as the same. With the shipped model and
        3 x 30 layouts of ``sfvgen/TabletopReturn-v0`` no two layouts were nearer than 0.99, and one
        layout under two places of the gripper was 0.4 to 1.2 apart; the measure can't tell a
        gripper elsewhere from a cube elsewhere.

        Args:
            frame: first frame of the present episode, ``(H, W, 3)`` uint8.

        Returns:
            None where the bank has no finished episode of this model.
        """
        finished = [number for number in self._episodes if number not in self._writers]
        numbers = [number for number in finished if self._knows_start(number)]
        if not numbers:
            return None
        earlier = torch.stack([self._first_latents[number] for number in numbers])
        difference = (earlier - self._latents(frame)).flatten(1)
        distances = difference.square().mean(dim=1).sqrt()
        best = int(distances.argmin())
        distance = float(distances[best])
        return NearestMemory(
            self._episodes[numbers[best]], distance, distance < self.same_scene_distance
        )

    # ---------------------------------------------------------------- writing

    def begin(self, frame: np.ndarray) -> EpisodeWriter:
        """Begin to record an episode; several may be recorded at once.

        Args:
            frame: its first frame, ``(H, W, 3)`` uint8.

        Raises:
            SfvgenError: the bank is open for reading only, or cannot be written to.
        """
        if self._lock is None:
            raise SfvgenError(
                f"{self.path} is closed, or open for reading only; open it with mode='a' to append"
            )
        require(
            os.getpid() == self._process,
            f"{self.path} was opened in another process, of which this is a copy; open a bank in "
            "the process that appends to it, one for each",
        )
        number = self._next_number
        self._next_number += 1
        latents = self._latents(frame)
        writer = EpisodeWriter(
            self._episodes_folder / episode_folder(number),
            frame,
            latents,
            self.model_fingerprint,
            on_chunk=lambda: self._on_chunk(number),
            on_close=lambda: self._on_close(number),
        )
        self._writers[number] = writer
        self._first_latents[number] = latents
        return writer

    def check_model(self) -> None:
        """Refuse to go on with other weights than those that the bank was opened with.

        Raises:
            SfvgenError: slow learning, or a memory with trained adapters, has changed the model.
        """
        require(
            fingerprint(self.world_model) == self.model_fingerprint,
            f"the model has changed since the bank {self.path} was opened; attach the memory "
            "first, then open the bank",
        )

    def close(self) -> None:
        """End the episodes that are being recorded, and let other processes append."""
        for writer in list(self._writers.values()):
            writer.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ---------------------------------------------------------------- inside

    @property
    def _episodes_folder(self) -> Path:
        return self.path / "episodes"

    def _is_of_model(self, number: int) -> bool:
        return self._episodes[number].model == self.model_fingerprint

    def _knows_start(self, number: int) -> bool:
        """Whether an episode can be compared with; one whose start is gone is left out."""
        if not self._is_of_model(number):
            return False
        if number not in self._first_latents:
            try:
                self._first_latents[number] = self._episodes[number].first_latents()
            except SfvgenError as error:
                logger.warning("left out from here on: %s", error)
                del self._episodes[number], self._bytes[number]
                return False
        return True

    def _latents(self, frame: np.ndarray) -> Tensor:
        return self.world_model.encode(frame[None, None])[0, :, 0].float().cpu()

    def _prepare(self) -> None:
        """Make the folder, or see that it is a bank's, before anything is written into it."""
        if (self.path / _DESCRIPTION_FILE).exists():
            self._check_description()
            return
        prepare_folder(self.path)
        # What another process has begun, or left when it was killed in here.
        ours = (self._episodes_folder.name, _DESCRIPTION_FILE, f".{_DESCRIPTION_FILE}.", _LOCK_FILE)
        foreign = [path.name for path in self.path.iterdir() if not path.name.startswith(ours)]
        require(
            not foreign,
            f"{self.path} is there already, holds {', '.join(foreign[:3])} and is no memory bank; "
            "give an empty or a new folder",
        )

    def _describe(self) -> None:
        self._episodes_folder.mkdir(exist_ok=True)
        description = self.path / _DESCRIPTION_FILE
        if not description.exists():
            write_json(description, {"format": FORMAT, "version": VERSION})

    def _check_description(self) -> None:
        file = self.path / _DESCRIPTION_FILE
        try:
            description = json.loads(file.read_text(encoding="utf-8"))
            found = description["format"], description["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SfvgenError(
                f"{self.path} is no memory bank ({_DESCRIPTION_FILE} is missing or unreadable); "
                "give a bank's folder, or a new one"
            ) from error
        if found != (FORMAT, VERSION):
            raise SfvgenError(
                f"{file} says {found[0]} version {found[1]}, but this sfvgen-planner reads "
                f"{FORMAT} version {VERSION}; give another folder"
            )

    def _locked(self) -> IO[str]:
        """A file that is never replaced, locked: the description may be written anew."""
        try:
            file = (self.path / _LOCK_FILE).open("a")
        except OSError as error:
            raise SfvgenError(
                f"cannot write to the memory bank {self.path} ({error.strerror}); open it with "
                "mode='r', or give another folder"
            ) from error
        lock(
            file,
            f"another process is writing to the memory bank {self.path}; wait for it, or give "
            "another folder",
        )
        return file

    def _clean(self) -> None:
        """Remove what a killed process left: unfinished files, half-dropped or empty episodes.

        All else stays, because it may be good: what can't be read now, and what is not the bank's.
        """
        for file in self.path.glob(f".{_DESCRIPTION_FILE}.*"):
            file.unlink()
        for folder in list(self._episodes_folder.iterdir()):
            name = folder.name.removeprefix(_DROPPED_PREFIX)
            if not is_episode_folder(name) or not folder.is_dir():
                logger.warning("%s is no episode of a memory bank; it is left as it is", folder)
                continue
            try:
                if name != folder.name:
                    shutil.rmtree(folder)
                    continue
                remove_temporary(folder)
                if is_unfinished(folder):
                    logger.warning("%s: removed an episode without a complete chunk", folder)
                    shutil.rmtree(folder)
                elif BankEpisode.found(folder, self.model_fingerprint) is None:
                    logger.warning("%s can't be read; it is left out, and left as it is", folder)
            except OSError as error:
                logger.warning("%s can't be cleaned (%s); it is left as it is", folder, error)

    def _on_chunk(self, number: int) -> None:
        writer = self._writers[number]
        if number not in self._episodes:
            episode = BankEpisode.found(writer.path, self.model_fingerprint)
            assert episode is not None
            # Episodes that are recorded at once may get their first chunk in any order.
            self._episodes = dict(sorted({**self._episodes, number: episode}.items()))
        self._episodes[number].refresh()
        self._bytes[number] = folder_bytes(writer.path)
        self._enforce_limit()

    def _on_close(self, number: int) -> None:
        writer = self._writers.pop(number)
        if number in self._episodes:
            self._enforce_limit(kept=number)
        else:
            del self._first_latents[number]
            shutil.rmtree(writer.path)

    def _enforce_limit(self, kept: int | None = None) -> None:
        """Drop the oldest episodes until the rest fits, but none that is recorded, nor `kept`."""
        if self.max_bytes is None:
            return
        for number in list(self._episodes):
            if self.num_bytes <= self.max_bytes:
                return
            if number not in self._writers and number != kept:
                self._drop(number)

    def _drop(self, number: int) -> None:
        folder = self._episodes.pop(number).path
        self._bytes.pop(number)
        self._first_latents.pop(number, None)
        # Gone at once: a process that is killed here leaves no half of an episode.
        aside = folder.replace(folder.with_name(_DROPPED_PREFIX + folder.name))
        shutil.rmtree(aside)
