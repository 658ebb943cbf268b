"""Episode stores to and from Minari datasets, bit for bit."""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sfvgen_planner.data.camera import proprioception
from sfvgen_planner.data.environment import make_env
from sfvgen_planner.data.episode import BoolArray, Episode, EpisodeSource, FrameArray
from sfvgen_planner.data.spec import StoreSpec
from sfvgen_planner.data.store import EpisodeStore, made_aside, require_free_folder
from sfvgen_planner.errors import SfvgenError

logger = logging.getLogger(__name__)

# Minari holds what is written at once in memory.
EPISODES_PER_WRITE = 32
METADATA_KEY = "sfvgen"


def to_minari(store: EpisodeStore, dataset_id: str, progress: bool = True) -> None:
    """Write a store as a local Minari dataset.

    Observations are a Dict of `image` and, where there is any, `proprio`; `infos["instruction"]`
    has the instruction of each step, and `infos["success"]`, where the environment tells it,
    whether an observation shows what the step before it was asked for. What Minari has no place
    for is kept as metadata.

    Args:
        store: The episodes.
        dataset_id: Minari's name, such as `tabletop/return-v0`.
        progress: Whether to show a progress bar.

    Raises:
        SfvgenError: Minari is not installed, it has a dataset of this name, the name is malformed,
            the store is empty, or the disk is full (nothing of the dataset is left behind).
    """
    minari = _import_minari()
    if len(store) == 0:
        raise SfvgenError(f"{store.path} holds no episodes, so there is nothing to convert")
    if _find(minari, dataset_id) is not None:
        raise SfvgenError(
            f"Minari has a dataset {dataset_id!r} already; give another name or version, or delete "
            f"it with `minari delete {dataset_id}`"
        )
    folder = Path(minari.storage.get_dataset_path(dataset_id))
    if folder.exists():
        raise SfvgenError(
            f"{folder} holds something that is no Minari dataset; move it away, or give another "
            "name or version"
        )
    with _quiet(), _made_or_removed(minari, dataset_id):
        dataset = _create(minari, store, dataset_id)
        for start in tqdm(range(0, len(store), EPISODES_PER_WRITE), disable=not progress):
            indices = range(start, min(start + EPISODES_PER_WRITE, len(store)))
            dataset.update_dataset_from_buffer([_buffer(store[index]) for index in indices])
            dataset.storage.update_episode_metadata(
                [_metadata(store, index) for index in indices], indices
            )


def from_minari(
    dataset_id: str, out: str | os.PathLike[str], progress: bool = True
) -> EpisodeStore:
    """Read a local Minari dataset into a new store.

    Any dataset with bounded continuous actions and RGB observations will do: as an entry `image`
    of a Dict observation, or as the whole observation. Foreign datasets have no instructions
    unless `infos["instruction"]` has them, no successes unless `infos["success"]` or
    `infos["is_success"]` has them, and the episode's number serves as a seed where none
    was recorded.

    Returns:
        The store, open for reading.

    Raises:
        SfvgenError: Minari or the dataset is not there, it has no pictures or other actions, or
            the folder cannot be written or holds something.
    """
    minari = _import_minari()
    out = Path(out)
    require_free_folder(out)
    dataset = _find(minari, dataset_id)
    if dataset is None:
        raise SfvgenError(
            f"there is no Minari dataset {dataset_id!r} on this machine; `minari list local` shows "
            f"what there is, `minari download {dataset_id}` fetches a public one"
        )
    if dataset.total_episodes == 0:
        raise SfvgenError(f"the Minari dataset {dataset_id!r} has no episodes")
    with (
        made_aside(out) as made,
        EpisodeStore.create(made, _spec(dataset, dataset_id)) as store,
    ):
        for number in tqdm(range(dataset.total_episodes), disable=not progress):
            store.append(_episode(dataset, number, dataset_id))
    return EpisodeStore.open(out)


def _import_minari() -> ModuleType:
    try:
        import h5py  # noqa: F401 - Minari's storage needs it, and says so late
        import minari
    except ImportError as error:
        raise SfvgenError(
            "converting Minari datasets needs Minari: pip install 'sfvgen-planner[minari]'"
        ) from error
    return minari


def _find(minari: ModuleType, dataset_id: str) -> Any:
    try:
        minari.dataset.minari_dataset.parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise SfvgenError(
            f"{dataset_id!r} is no name of a Minari dataset; it must be like 'tabletop/return-v0', "
            "with a version at the end"
        ) from error
    try:
        return minari.load_dataset(dataset_id)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, OSError) as error:
        raise SfvgenError(f"Minari cannot open the dataset {dataset_id!r}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Minari's advice to name an author."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="minari")
        yield


@contextmanager
def _made_or_removed(minari: ModuleType, dataset_id: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        folder = Path(minari.storage.get_dataset_path(dataset_id))
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError | ValueError) and not isinstance(error, SfvgenError):
            raise SfvgenError(f"cannot write the Minari dataset {dataset_id!r}: {error}") from error
        raise


def _create(minari: ModuleType, store: EpisodeStore, dataset_id: str) -> Any:
    spec = store.spec
    spaces: dict[str, gym.Space[Any]] = {
        "image": gym.spaces.Box(0, 255, (*spec.image_size, 3), np.uint8)
    }
    if spec.proprio_size:
        spaces["proprio"] = gym.spaces.Box(-np.inf, np.inf, (spec.proprio_size,), np.float32)
    env = _recreated_env(store)
    try:
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            [],
            env=env,
            observation_space=gym.spaces.Dict(spaces),
            action_space=gym.spaces.Box(
                np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32)
            ),
            algorithm_name=", ".join(sorted({entry.source.policy for entry in store.entries})),
            jpeg_encoding=False,
        )
    finally:
        if env is not None:
            env.close()
    dataset.storage.update_metadata({METADATA_KEY: json.dumps(spec.to_json())})
    return dataset


def _recreated_env(store: EpisodeStore) -> Any:
    """Make the environment for Minari to describe, where there is one that can be described."""
    env_kwargs = [entry.source.env_kwargs for entry in store.entries]
    if any(kwargs != env_kwargs[0] for kwargs in env_kwargs):
        return None
    try:
        env = make_env(store.spec.env_id, env_kwargs[0], store.spec.frame_skip)
    except SfvgenError:
        return None
    try:
        if env.spec is not None:
            env.spec.to_json()
            return env
    except ValueError as error:
        logger.warning("Minari will not know the environment: %s", error)
    env.close()
    return None


def _buffer(episode: Episode) -> Any:
    from minari.data_collector.episode_buffer import EpisodeBuffer

    steps = len(episode)
    observations: dict[str, NDArray[Any]] = {"image": episode.frames}
    if episode.proprio is not None:
        observations["proprio"] = episode.proprio
    at_end = np.arange(steps) == steps - 1
    return EpisodeBuffer(
        seed=episode.seed,
        observations=observations,
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=at_end & episode.terminated,
        truncations=at_end & episode.truncated,
        infos=_infos(episode),
    )


def _infos(episode: Episode) -> dict[str, list[Any]]:
    """One entry per observation, as Minari's own collector has it."""
    infos: dict[str, list[Any]] = {"instruction": [*episode.instructions, episode.instructions[-1]]}
    if episode.successes is not None:
        # Before the first step nothing is known to be achieved.
        infos["success"] = [False, *episode.successes.tolist()]
    return infos


def _metadata(store: EpisodeStore, index: int) -> dict[str, str]:
    entry = store.entries[index]
    return {METADATA_KEY: json.dumps({"info": entry.info, "source": asdict(entry.source)})}


def _spec(dataset: Any, dataset_id: str) -> StoreSpec:
    written = dataset.storage.metadata.get(METADATA_KEY)
    if written is not None:
        return StoreSpec.from_json(json.loads(written))
    space = dataset.action_space
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
        raise SfvgenError(
            f"the Minari dataset {dataset_id!r} has the action space {space}, but a bounded vector "
            "of floats is needed"
        )
    observations = dataset[0].observations
    frames = _frames(observations, dataset_id)
    proprio = proprioception(_first(observations))
    return StoreSpec(
        env_id=dataset.env_spec.id if dataset.env_spec is not None else dataset_id,
        frame_skip=1,
        image_size=(frames.shape[1], frames.shape[2]),
        action_low=tuple(space.low.astype(np.float32).tolist()),
        action_high=tuple(space.high.astype(np.float32).tolist()),
        proprio_size=0 if proprio is None else len(proprio),
    )


def _episode(dataset: Any, number: int, dataset_id: str) -> Episode:
    data = dataset[number]
    (metadata,) = dataset.storage.get_episode_metadata([data.id])
    extra = json.loads(metadata.get(METADATA_KEY, "{}"))
    infos = data.infos or {}
    texts = infos.get("instruction", [""] * len(data))
    return Episode(
        frames=_frames(data.observations, dataset_id),
        actions=np.asarray(data.actions, np.float32),
        instructions=[_text(text) for text in texts[: len(data)]],
        rewards=np.asarray(data.rewards, np.float32),
        terminated=bool(data.terminations[-1]),
        truncated=bool(data.truncations[-1]),
        seed=metadata.get("seed", number),
        proprio=_proprio(data.observations),
        successes=_successes(infos, len(data)),
        info=extra.get("info", {}),
        source=EpisodeSource(**extra.get("source", {})),
    )


def _frames(observations: Any, dataset_id: str) -> FrameArray:
    frames = observations.get("image") if isinstance(observations, dict) else observations
    if (
        not isinstance(frames, np.ndarray)
        or frames.dtype != np.uint8
        or frames.ndim != 4
        or frames.shape[-1] != 3
    ):
        raise SfvgenError(
            f"the Minari dataset {dataset_id!r} has no RGB pictures (uint8, (T + 1, H, W, 3)), "
            "neither as observations nor as their entry 'image'"
        )
    return frames


def _first(observations: Any) -> Any:
    if isinstance(observations, dict):
        return {key: values[0] for key, values in observations.items()}
    return observations[0]


def _proprio(observations: Any) -> NDArray[np.float32] | None:
    if proprioception(_first(observations)) is None:
        return None
    values = observations.get("proprio", observations.get("observation"))
    return np.asarray(values, np.float32)


def _successes(infos: dict[str, Any], num_steps: int) -> BoolArray | None:
    values = infos.get("success", infos.get("is_success"))
    # The first of one more than there are steps belongs to the reset.
    if values is None or np.shape(values) not in ((num_steps,), (num_steps + 1,)):
        return None
    return np.asarray(values[-num_steps:]).astype(np.bool_)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
