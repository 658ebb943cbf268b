"""Episodes on disk: zarr arrays, and an index that commits them one by one."""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from zlib import crc32

import numpy as np
import zarr
from numpy.typing import NDArray

from sfvgen_planner.data.chunks import (
    CODEC_NAMES,
    COMPRESSORS,
    codec_names,
    read_chunk,
    remove_chunk,
    write_chunk,
)
from sfvgen_planner.data.episode import Episode, Window
from sfvgen_planner.data.index import IndexEntry, IndexWriter, read_index
from sfvgen_planner.data.spec import StoreSpec
from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.files import writing_errors

FORMAT = "sfvgen-episodes"
VERSION = 1
INDEX_FILE = "episodes.jsonl"
# How the names of folders begin in which stores are made.
ASIDE = ".store."
FRAMES_PER_CHUNK = 16
# Every episode starts at a multiple of this many rows, so that no chunk belongs to two episodes
# and writing one can never damage another. Rows that are never written take no space.
ROWS_PER_BLOCK = 128
# The arrays grow by this many rows at once: growing rewrites zarr's metadata.
ROWS_PER_GROWTH = 1 << 20
# Packing frees Python's lock, and one core packs fewer frames than a few workers render.
PACKING_THREADS = min(8, os.cpu_count() or 1)
# What a crash can cost at most.
SECONDS_BETWEEN_COMMITS = 1.0


class EpisodeStore:
    """A sequence of episodes on disk, lossless, safe against a crash in mid-write.

    The folder is a zarr 3 group with the arrays `frames (rows, H, W, 3)`, `actions (rows, A)`,
    `rewards (rows,)` and, where there is any, `proprio (rows, P)`; the row after an episode's last
    action holds its last frame. `episodes.jsonl` has one line per episode, written when its
    arrays are on disk: what has no line does not exist, and is overwritten by the next episode.
    Instructions and successes, which change seldom, stand in that line.
    """

    def __init__(
        self,
        path: Path,
        spec: StoreSpec,
        arrays: dict[str, zarr.Array[Any]],
        entries: list[IndexEntry],
        writer: IndexWriter | None,
    ) -> None:
        """Use `create` or `open` instead."""
        self.path = path
        self.spec = spec
        self.entries = entries
        self._arrays = arrays
        self._writer = writer
        self._packing = ThreadPoolExecutor(PACKING_THREADS, "packing")
        self._num_committed = len(entries)
        self._last_commit = time.monotonic()

    @classmethod
    def create(cls, path: str | os.PathLike[str], spec: StoreSpec) -> Self:
        """Make an empty store and open it for appending.

        Raises:
            SfvgenError: The folder cannot be written, or holds something already.
        """
        path = Path(path)
        require_free_folder(path)
        try:
            with made_aside(path) as made:
                _create_arrays(made, spec)
                (made / INDEX_FILE).touch()
        except OSError as error:
            raise SfvgenError(f"cannot make the folder {path}: {error.strerror}") from error
        return cls.open(path, mode="a")

    @classmethod
    def open(cls, path: str | os.PathLike[str], mode: Literal["r", "a"] = "r") -> Self:
        """Open a store for reading (`r`) or for reading and appending (`a`).

        A reader sees the episodes that were committed when it opened the store.

        Raises:
            SfvgenError: There is no store, it is damaged, it has another version, (`a`) another
                process is writing to it, or the mode is another.
        """
        require(mode in ("r", "a"), f"mode must be 'r' or 'a', got {mode!r}")
        path = Path(path)
        spec = _read_spec(path)
        writer = None
        try:
            if mode == "a":
                writer = IndexWriter(path / INDEX_FILE)
                entries = writer.entries
            else:
                entries, _ = read_index(path / INDEX_FILE)
            arrays = _open_arrays(path, spec, writable=mode == "a")
        except OSError as error:
            raise SfvgenError(f"cannot open the episode store {path}: {error}") from error
        return cls(path, spec, arrays, entries, writer)

    def append(self, episode: Episode) -> None:
        """Add an episode. It is on disk after `commit`, which comes by itself now and then.

        Raises:
            SfvgenError: The store is open for reading only, the episode's sizes differ from the
                store's, or the disk is full (the episodes before this one stay).
        """
        if self._writer is None:
            raise SfvgenError(f"{self.path} is open for reading; open it with mode='a' to append")
        self.spec.require_fits(episode)
        row = self._next_row()
        frames = np.ascontiguousarray(episode.frames)
        values: dict[str, NDArray[Any]] = {
            "frames": frames,
            "actions": episode.actions,
            "rewards": episode.rewards,
        }
        if episode.proprio is not None:
            values["proprio"] = episode.proprio
        try:
            self._write(row, values)
        except OSError as error:
            # The lines of the episodes before it need the room that it took.
            self._remove(row, len(frames))
            self.commit()
            raise SfvgenError(
                f"cannot write episode {len(self)} to {self.path} ({error.strerror}); the episodes "
                "before it are kept"
            ) from error
        self.entries.append(IndexEntry.of(episode, row, crc32(frames.data)))
        if time.monotonic() - self._last_commit > SECONDS_BETWEEN_COMMITS:
            self.commit()

    def commit(self) -> None:
        """Put the episodes that were appended since the last commit on disk.

        Raises:
            SfvgenError: The disk is full; the last of these episodes are lost, as many as take the
                room that the others need, and those before them are kept.
        """
        if self._writer is None or self._num_committed == len(self.entries):
            return
        # The arrays must be on disk before the lines that tell of them. One call for all is many
        # times faster than one for each file.
        os.sync()
        failure: OSError | None = None
        while self._num_committed < len(self.entries):
            try:
                self._writer.append(self.entries[self._num_committed :])
                self._num_committed = len(self.entries)
            except OSError as error:
                failure = error
                last = self.entries.pop()
                self._remove(last.row, last.num_steps + 1)
        self._last_commit = time.monotonic()
        if failure is not None:
            raise SfvgenError(
                f"cannot write to {self.path} ({failure.strerror}); the first {len(self)} episodes "
                "are kept"
            ) from failure

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Episode:
        """Read a whole episode and check it against its checksum.

        Raises:
            IndexError: There is no such episode.
            SfvgenError: Its data is damaged.
        """
        entry = self.entries[index]
        steps = entry.num_steps
        frames = self._read("frames", entry, 0, steps + 1)
        if crc32(frames.data) != entry.frames_crc32:
            raise self._damaged(entry, "frames", "their checksum differs")
        return Episode(
            frames=frames,
            actions=self._read("actions", entry, 0, steps),
            instructions=entry.instruction_list(),
            rewards=self._read("rewards", entry, 0, steps),
            terminated=entry.terminated,
            truncated=entry.truncated,
            seed=entry.seed,
            proprio=self._read("proprio", entry, 0, steps + 1) if self.spec.proprio_size else None,
            successes=entry.success_array(),
            info=entry.info,
            source=entry.source,
        )

    def __iter__(self) -> Iterator[Episode]:
        """Read the episodes in order."""
        return (self[index] for index in range(len(self)))

    @property
    def num_steps(self) -> list[int]:
        """T of each episode."""
        return [entry.num_steps for entry in self.entries]

    def window(self, index: int, start: int, num_frames: int) -> Window:
        """Read frames `start .. start + num_frames - 1` of episode `index`.

        Raises:
            SfvgenError: The episode has no such frames, or they are damaged.
        """
        entry = self.entries[index]
        if num_frames < 1 or start < 0 or start + num_frames > entry.num_steps + 1:
            raise SfvgenError(
                f"episode {index} of {self.path} has frames 0 to {entry.num_steps}; there is no "
                f"window of {num_frames} from frame {start} on"
            )
        return Window(
            frames=self._read("frames", entry, start, num_frames),
            actions=self._read("actions", entry, start, num_frames - 1),
            instructions=entry.instruction_list()[start : start + num_frames - 1],
        )

    def close(self) -> None:
        """Commit, and let other processes append."""
        try:
            self.commit()
        finally:
            self._packing.shutdown()
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _next_row(self) -> int:
        if not self.entries:
            return 0
        last = self.entries[-1]
        return last.row + _round_up(last.num_steps + 1, ROWS_PER_BLOCK)

    def _write(self, row: int, values: dict[str, NDArray[Any]]) -> None:
        """Write whole chunks only: what a crash left in them must never be read back."""
        for name, rows in values.items():
            self._grow(name, row + len(rows))
        writing = []
        for name, rows in values.items():
            array = self._arrays[name]
            rows_per_chunk = array.chunks[0]
            typed = rows.astype(array.dtype, copy=False)
            for number, path in enumerate(self._chunk_files(name, row, len(rows))):
                part = typed[number * rows_per_chunk : (number + 1) * rows_per_chunk]
                writing.append(self._packing.submit(write_chunk, path, part, rows_per_chunk))
        # Also where one fails: the next episode takes the same files.
        wait(writing)
        for written in writing:
            written.result()

    def _remove(self, row: int, num_rows: int) -> None:
        """Free the room of an episode that is not kept."""
        for name in self._arrays:
            for path in self._chunk_files(name, row, num_rows):
                remove_chunk(path)

    def _grow(self, name: str, num_rows: int) -> None:
        array = self._arrays[name]
        if num_rows > array.shape[0]:
            array.resize((_round_up(num_rows, ROWS_PER_GROWTH), *array.shape[1:]))

    def _read(self, name: str, entry: IndexEntry, start: int, num_rows: int) -> NDArray[Any]:
        array = self._arrays[name]
        first = entry.row + start
        if num_rows == 0:
            return np.zeros((0, *array.shape[1:]), array.dtype)
        try:
            chunks = [
                read_chunk(path, array.chunks, array.dtype)
                for path in self._chunk_files(name, first, num_rows)
            ]
        except (OSError, ValueError) as error:
            raise self._damaged(entry, name, str(error)) from error
        begin = first % array.chunks[0]
        return np.concatenate(chunks)[begin : begin + num_rows]

    def _damaged(self, entry: IndexEntry, name: str, reason: str) -> SfvgenError:
        index = self.entries.index(entry)
        return SfvgenError(
            f"the {name} of episode {index} of {self.path} are damaged ({reason}); restore the "
            "folder from a copy, or collect again into another folder"
        )

    def _chunk_files(self, name: str, row: int, num_rows: int) -> list[str]:
        array = self._arrays[name]
        rows_per_chunk = array.chunks[0]
        inner = "/0" * (array.ndim - 1)
        chunks = range(
            row // rows_per_chunk, _round_up(row + num_rows, rows_per_chunk) // rows_per_chunk
        )
        return [f"{self.path}/{name}/c/{chunk}{inner}" for chunk in chunks]


def is_filled_folder(path: Path) -> bool:
    """Whether `path` is a folder that holds anything but what a killed process has made aside."""
    return path.is_dir() and not all(part.name.startswith(ASIDE) for part in path.iterdir())


def require_free_folder(path: Path) -> None:
    """Raise an SfvgenError unless a store can be made at `path`."""
    if is_filled_folder(path) or (path.exists() and not path.is_dir()):
        raise SfvgenError(f"{path} is there already and not empty; give an empty or a new folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SfvgenError(f"cannot make the folder {path}: {error.strerror}") from error
    where = path if path.exists() else path.parent
    if not os.access(where, os.W_OK | os.X_OK):
        raise SfvgenError(f"cannot make the folder {path}: {where} is not writable")


@contextmanager
def made_aside(path: Path) -> Iterator[Path]:
    """Where to make what becomes the store `path` once it is whole; a failure leaves nothing.

    Args:
        path: As `require_free_folder` accepts it.

    Raises:
        SfvgenError: It cannot be written.
    """
    exists = path.exists()
    with writing_errors(path):
        aside = tempfile.TemporaryDirectory(prefix=ASIDE, dir=path if exists else path.parent)
    with aside as folder:
        made = Path(folder) / "store"
        yield made
        with writing_errors(path):
            if not exists:
                made.replace(path)
                return
            # A mount point or the present folder can't be replaced. What makes it a store is last.
            for part in sorted(made.iterdir(), key=lambda part: part.name == "zarr.json"):
                part.rename(path / part.name)


def _array_shapes(spec: StoreSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of one row of each array."""
    shapes: dict[str, tuple[int, ...]] = {
        "frames": (*spec.image_size, 3),
        "actions": (spec.action_size,),
        "rewards": (),
    }
    if spec.proprio_size:
        shapes["proprio"] = (spec.proprio_size,)
    return shapes


def _create_arrays(path: Path, spec: StoreSpec) -> None:
    attributes = {"format": FORMAT, "version": VERSION, "spec": spec.to_json()}
    group = zarr.create_group(path, attributes=attributes)
    for name, row_shape in _array_shapes(spec).items():
        rows_per_chunk = FRAMES_PER_CHUNK if name == "frames" else ROWS_PER_BLOCK
        group.create_array(
            name,
            shape=(ROWS_PER_GROWTH, *row_shape),
            chunks=(rows_per_chunk, *row_shape),
            dtype=np.uint8 if name == "frames" else np.float32,
            compressors=COMPRESSORS,
        )


def _open_arrays(path: Path, spec: StoreSpec, writable: bool) -> dict[str, zarr.Array[Any]]:
    arrays = {}
    for name, row_shape in _array_shapes(spec).items():
        try:
            array = zarr.open_array(path / name, mode="r+" if writable else "r", zarr_format=3)
        except (FileNotFoundError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise SfvgenError(
                f"the episode store {path} is damaged: {path / name}/zarr.json is missing or "
                "unreadable"
            ) from error
        if array.shape[1:] != row_shape:
            raise SfvgenError(
                f"the episode store {path} is damaged: {name} has rows of shape "
                f"{array.shape[1:]}, but its description says {row_shape}"
            )
        if codec_names(array) != CODEC_NAMES:
            raise SfvgenError(
                f"{path / name} is packed with {codec_names(array)} instead of {CODEC_NAMES}; copy "
                "the store as files, without packing its arrays anew"
            )
        arrays[name] = array
    return arrays


def _read_spec(path: Path) -> StoreSpec:
    advice = "give a folder that `sfvgen collect` made"
    try:
        metadata = json.loads((path / "zarr.json").read_bytes())
    except FileNotFoundError as error:
        found = "has no zarr.json" if path.exists() else "does not exist"
        raise SfvgenError(f"{path} is no episode store (it {found}); {advice}") from error
    except (OSError, ValueError) as error:
        raise SfvgenError(f"cannot read {path / 'zarr.json'} ({error}); {advice}") from error
    attributes = metadata.get("attributes") if isinstance(metadata, dict) else None
    attributes = attributes if isinstance(attributes, dict) else {}
    if attributes.get("format") != FORMAT:
        raise SfvgenError(f"{path} is a zarr store, but not of episodes; {advice}")
    if attributes.get("version") != VERSION:
        raise SfvgenError(
            f"{path} has version {attributes.get('version')} of the episode format, but this "
            f"sfvgen-planner reads version {VERSION}; collect again, or install the release that "
            "wrote it"
        )
    try:
        return StoreSpec.from_json(attributes["spec"])
    except (KeyError, TypeError) as error:
        raise SfvgenError(
            f"the description in {path / 'zarr.json'} is incomplete: {error}"
        ) from error


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
