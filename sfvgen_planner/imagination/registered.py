"""Imagined worlds for ``gymnasium.make`` and ``make_vec``, made of names and numbers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.data.store import EpisodeStore
from sfvgen_planner.errors import require
from sfvgen_planner.imagination.env import WorldModelEnv
from sfvgen_planner.imagination.starts import EnvStarts, Starts, StoreStarts
from sfvgen_planner.imagination.vector_env import WorldModelVectorEnv
from sfvgen_planner.memory import EpisodicMemory
from sfvgen_planner.world_model import VideoWorldModel, checkpoint_folder
from sfvgen_planner.world_model.device import check_device
from sfvgen_planner.world_model.heads import load_heads

# Worlds that are made one by one, as by SB3's make_vec_env, share their model while it is in use.
_loaded: WeakValueDictionary[tuple[Path, int, str], VideoWorldModel] = WeakValueDictionary()


class ImaginedEnv(WorldModelEnv):
    """``sfvgen/Imagined-v0``: one world of a checkpoint, judged by its outcome head if it has one.

    Args:
        model: name of a shipped model, a checkpoint folder or a Hub id (``user/name@revision``).
        env_id: Gymnasium id of the environment whose first frames episodes begin with; by default
            the one that the model was trained on.
        env_kwargs: arguments of that environment.
        start_data: an episode store to begin in the midst of instead, without any environment.
        device: that the model runs on.
        memory: whether what leaves the context window is remembered, by the fast weights of the
            checkpoint.
        render_mode: see :class:`WorldModelEnv`.
        **kwargs: further arguments of :class:`WorldModelVectorEnv`, such as ``horizon``, or an
            ``outcome_head`` in place of the checkpoint's.

    Raises:
        SfvgenError: where the model, the environment or the store is missing, or an argument makes
            no sense.

    Example:
        >>> import gymnasium
        >>> env = gymnasium.make("sfvgen_planner.imagination:sfvgen/Imagined-v0", horizon=16)
    """

    def __init__(
        self,
        model: str = "tabletop",
        env_id: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        start_data: str | None = None,
        device: str = "cpu",
        memory: bool = False,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        folder = checkpoint_folder(model)
        world_model, parts = _load(folder, device, memory)
        self._starts = _starts(world_model, env_id, env_kwargs, start_data)
        with _closed_on_error(self._starts):
            super().__init__(world_model, self._starts, render_mode, **(parts | kwargs))

    def close(self) -> None:
        """Close the window and the environment that the starts came from."""
        super().close()
        _close(self._starts)


class ImaginedVectorEnv(WorldModelVectorEnv):
    """``sfvgen/Imagined-v0`` for ``make_vec``: many worlds in one batch.

    Args:
        num_envs: number of worlds.
        model: this and what follows as for :class:`ImaginedEnv`.
        env_id: likewise.
        env_kwargs: likewise.
        start_data: likewise.
        device: likewise.
        memory: likewise, in a slot for each world.
        **kwargs: further arguments of :class:`WorldModelVectorEnv`.

    Raises:
        SfvgenError: as :class:`ImaginedEnv`.
    """

    def __init__(
        self,
        num_envs: int,
        model: str = "tabletop",
        env_id: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        start_data: str | None = None,
        device: str = "cpu",
        memory: bool = False,
        **kwargs: Any,
    ) -> None:
        folder = checkpoint_folder(model)
        world_model, parts = _load(folder, device, memory, num_envs)
        starts = _starts(world_model, env_id, env_kwargs, start_data)
        with _closed_on_error(starts):
            super().__init__(world_model, starts, num_envs, **(parts | kwargs))

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environment that the starts came from."""
        _close(self.starts)


def _load(
    folder: Path, device: str, memory: bool, num_envs: int = 1
) -> tuple[VideoWorldModel, dict[str, Any]]:
    """A checkpoint's world model, and what else of it judges and remembers in imagined worlds."""
    check_device(device)
    require(
        isinstance(memory, bool),
        f"memory is True or False here, where the model is loaded, got {memory!r}; a memory of "
        "your own goes to WorldModelEnv or WorldModelVectorEnv",
    )
    head = load_heads(folder).outcome_head
    if not memory:
        return _shared_model(folder, device), {"outcome_head": head}
    # A memory's adapters are in the model, which another's worlds would not expect there.
    world_model = VideoWorldModel.from_pretrained(folder).to(device)
    own = EpisodicMemory.from_pretrained(world_model, folder, num_envs)
    return world_model, {"outcome_head": head, "memory": own}


def _shared_model(folder: Path, device: str) -> VideoWorldModel:
    # A folder may be written anew.
    key = folder.resolve(), (folder / "model_index.json").stat().st_mtime_ns, device
    model = _loaded.get(key)
    if model is None:
        model = _loaded[key] = VideoWorldModel.from_pretrained(folder).to(device)
    return model


def _starts(
    model: VideoWorldModel,
    env_id: str | None,
    env_kwargs: Mapping[str, Any] | None,
    start_data: str | None,
) -> Starts:
    if start_data is not None:
        require(
            env_id is None and not env_kwargs,
            "imagined episodes begin in start_data or in an environment: give one of the two",
        )
        return StoreStarts(EpisodeStore.open(start_data), model.config.num_past_frames)
    env_id = env_id or model.config.env_id
    require(
        bool(env_id),
        "the world model does not tell what it was trained on: give env_id or start_data",
    )
    return EnvStarts(make_env(env_id, env_kwargs), model.config.image_size)


@contextmanager
def _closed_on_error(starts: Starts) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _close(starts)
        raise


def _close(starts: Starts) -> None:
    if isinstance(starts, EnvStarts):
        starts.env.close()
