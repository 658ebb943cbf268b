"""Random training windows, from the disk or from memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sfvgen_planner.data.episode import Episode, FloatArray, FrameArray, Window
from sfvgen_planner.data.store import EpisodeStore
from sfvgen_planner.errors import SfvgenError

NUM_READERS = 4


class WindowSource(Protocol):
    """Episodes that can be read in windows: an `EpisodeStore` or `EpisodeArrays`."""

    @property
    def num_steps(self) -> list[int]:
        """T of each episode."""

    def window(self, index: int, start: int, num_frames: int) -> Window:
        """Return frames `start .. start + num_frames - 1` of an episode."""


@dataclass(frozen=True, eq=False)
class EpisodeArrays:
    """All episodes of a store in memory, one behind the other, N frames in all.

    Row r of `actions`, `rewards` and `successes` leads from frame r to frame r + 1; the row of an
    episode's last frame is zero, or -1 in `successes` and `instruction_ids`.

    Attributes:
        frames: `(N, H, W, 3)` uint8.
        actions: `(N, A)` float32, in the environment's units.
        rewards: `(N,)` float32.
        successes: `(N,)` int8: 1 where frame r + 1 shows instruction r achieved, 0 where it does
            not, -1 where the environment did not tell.
        proprio: `(N, P)` float32; P may be 0.
        instruction_ids: `(N,)` int32, indices into `instructions`.
        instructions: The different instructions.
        offsets: `(E + 1,)` int64; episode i has the rows `offsets[i] .. offsets[i + 1] - 1`.
    """

    frames: FrameArray
    actions: FloatArray
    rewards: FloatArray
    successes: NDArray[np.int8]
    proprio: FloatArray
    instruction_ids: NDArray[np.int32]
    instructions: list[str]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.offsets) - 1

    @property
    def num_steps(self) -> list[int]:
        """T of each episode."""
        return [int(length) - 1 for length in np.diff(self.offsets)]

    def window(self, index: int, start: int, num_frames: int) -> Window:
        """Return a view of frames `start .. start + num_frames - 1` of episode `index`."""
        first = int(self.offsets[index]) + start
        last = first + num_frames - 1
        if num_frames < 1 or start < 0 or last >= self.offsets[index + 1]:
            raise SfvgenError(
                f"episode {index} has {self.num_steps[index] + 1} frames; there is no window of "
                f"{num_frames} from frame {start} on"
            )
        return Window(
            frames=self.frames[first : last + 1],
            actions=self.actions[first:last],
            instructions=[self.instructions[i] for i in self.instruction_ids[first:last]],
        )


def load_all(store: EpisodeStore) -> EpisodeArrays:
    """Read a whole store into memory, checking every episode.

    Raises:
        SfvgenError: The store is empty, does not fit into memory, or is damaged.
    """
    if len(store) == 0:
        raise SfvgenError(f"{store.path} holds no episodes; collect some with `sfvgen collect`")
    offsets = np.cumsum([0, *(steps + 1 for steps in store.num_steps)], dtype=np.int64)
    num_rows = int(offsets[-1])
    spec = store.spec
    texts = sorted({text for entry in store.entries for text, _ in entry.instructions})
    ids = {text: i for i, text in enumerate(texts)}
    try:
        arrays = EpisodeArrays(
            frames=np.zeros((num_rows, *spec.image_size, 3), np.uint8),
            actions=np.zeros((num_rows, spec.action_size), np.float32),
            rewards=np.zeros(num_rows, np.float32),
            successes=np.full(num_rows, -1, np.int8),
            proprio=np.zeros((num_rows, spec.proprio_size), np.float32),
            instruction_ids=np.full(num_rows, -1, np.int32),
            instructions=texts,
            offsets=offsets,
        )
    except MemoryError as error:
        gigabytes = num_rows * spec.image_size[0] * spec.image_size[1] * 3 / 1e9
        raise SfvgenError(
            f"the {num_rows} frames of {store.path} take {gigabytes:.1f} GB, which do not fit into "
            "memory; sample windows from the disk with WindowSampler(store, ...)"
        ) from error

    def copy(index: int) -> None:
        episode: Episode = store[index]
        start, end = int(offsets[index]), int(offsets[index + 1])
        arrays.frames[start:end] = episode.frames
        arrays.actions[start : end - 1] = episode.actions
        arrays.rewards[start : end - 1] = episode.rewards
        arrays.instruction_ids[start : end - 1] = [ids[text] for text in episode.instructions]
        if episode.successes is not None:
            arrays.successes[start : end - 1] = episode.successes
        if episode.proprio is not None:
            arrays.proprio[start:end] = episode.proprio

    with ThreadPoolExecutor(NUM_READERS) as readers:
        list(readers.map(copy, range(len(store))))
    return arrays


@dataclass(frozen=True, eq=False)
class TrainingWindow:
    """What a model sees and what it has to generate.

    Attributes:
        frames: `(num_past + num_future, H, W, 3)` uint8.
        actions: `(num_past + num_future - 1, A)` float32; action k leads from frame k to k + 1,
            so the generated frames are led to by the last `num_future` actions.
        instruction: The one in force during all those last actions, "" where it changed.
    """

    frames: FrameArray
    actions: FloatArray
    instruction: str


class WindowSampler:
    """Draws windows at random, each possible one with the same probability."""

    def __init__(self, source: WindowSource, num_past: int, num_future: int, seed: int = 0) -> None:
        """Prepare to draw windows of `num_past` context frames and `num_future` generated ones.

        Args:
            source: A store (windows are read from the disk) or `load_all`'s arrays.
            num_past: At least 1.
            num_future: At least 1.
            seed: Two samplers with the same seed draw the same windows.

        Raises:
            SfvgenError: No episode is long enough.
        """
        if num_past < 1 or num_future < 1:
            raise SfvgenError(
                "a window needs at least 1 past and 1 future frame, but it has "
                f"{num_past} and {num_future}"
            )
        self._source = source
        self._num_future = num_future
        self._num_frames = num_past + num_future
        starts = np.array([steps + 2 - self._num_frames for steps in source.num_steps])
        self._first_window = np.cumsum([0, *np.maximum(starts, 0)])
        if len(self) == 0:
            longest = max(source.num_steps, default=-1) + 1
            raise SfvgenError(
                f"windows of {self._num_frames} frames were asked for, but the longest episode has "
                f"{longest}"
            )
        self._generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Return the number of different windows."""
        return int(self._first_window[-1])

    def __getitem__(self, number: int) -> TrainingWindow:
        """Return window `number` in the order of episodes and frames."""
        if not 0 <= number < len(self):
            raise IndexError(f"window {number} of {len(self)}")
        index = int(np.searchsorted(self._first_window, number, side="right")) - 1
        start = number - int(self._first_window[index])
        window = self._source.window(index, start, self._num_frames)
        asked = set(window.instructions[-self._num_future :])
        return TrainingWindow(window.frames, window.actions, asked.pop() if len(asked) == 1 else "")

    def sample(self) -> TrainingWindow:
        """Draw a window."""
        return self[int(self._generator.integers(len(self)))]

    def __iter__(self) -> Iterator[TrainingWindow]:
        """Draw windows without end."""
        while True:
            yield self.sample()
