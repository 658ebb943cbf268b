"""Make a Gymnasium environment that can be filmed and steered."""

import functools
import importlib
import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.metadata import entry_points
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator, namespace

from sfvgen_planner.data.frame_skip import FrameSkip
from sfvgen_planner.data.gl_context import OwnGLContext, draws_with_gymnasium
from sfvgen_planner.display import has_display, render_without_display
from sfvgen_planner.errors import SfvgenError, require

Environment = gym.Env[Any, np.ndarray[Any, Any]]


def make_env(
    env_id: str, env_kwargs: Mapping[str, Any] | None = None, frame_skip: int = 1
) -> Environment:
    """Make an environment with a camera and bounded continuous actions.

    Args:
        env_id: Gymnasium id, also in the form `module:id`. Installed packages that offer
            environments under the entry point group `gymnasium.envs` are found without an import.
        env_kwargs: Arguments of `gymnasium.make`; `render_mode` is `rgb_array` unless given.
        frame_skip: Environment steps per video frame.

    Raises:
        SfvgenError: There is no such environment, it cannot be made or shown, or its actions are
            not a bounded vector of floats.
    """
    is_given = env_kwargs is None or isinstance(env_kwargs, Mapping)
    require(is_given, f"env_kwargs must be a dict of arguments, got {env_kwargs!r}")
    kwargs = dict(env_kwargs or {})
    # GLFW ends the process where it is to open a window without one.
    require(
        kwargs.get("render_mode") != "human" or has_display(),
        f"cannot show {env_id!r} with render_mode='human': there is no display; use "
        "render_mode='rgb_array', or set DISPLAY to a display",
    )
    render_without_display()
    module, _, registered_id = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        elif env_id not in gym.registry:
            register_installed_envs()
        env: Environment = gym.make(registered_id, **{**_camera_kwargs(registered_id), **kwargs})
    except (gym.error.Error, ImportError, OSError, TypeError, ValueError, AssertionError) as error:
        arguments = f" with {kwargs}" if kwargs else ""
        raise SfvgenError(
            f"cannot make the environment {env_id!r}{arguments}: {_one_line(error)}"
        ) from error
    try:
        _require_steerable(env, env_id)
        if draws_with_gymnasium(env):
            env = OwnGLContext(env)
        return env if frame_skip == 1 else FrameSkip(env, frame_skip)
    except SfvgenError:
        env.close()
        raise


def action_box(env: Environment) -> gym.spaces.Box:
    """Return the action space of an environment from `make_env`."""
    return cast(gym.spaces.Box, env.action_space)


@functools.cache
def register_installed_envs() -> None:
    """Register the environments that installed packages offer.

    Gymnasium did this itself before 1.0; packages still declare the entry points. The entry
    point's name is the namespace, `__root__` stands for none.
    """
    for plugin in entry_points(group="gymnasium.envs"):
        plain = plugin.name in ("__root__", "__internal__")
        try:
            with nullcontext() if plain else namespace(plugin.name):
                register = plugin.load()
                if callable(register):
                    register()
        except ImportError as error:
            raise SfvgenError(
                f"the installed environments {plugin.name!r} ({plugin.value}) cannot be loaded: "
                f"{_one_line(error)}"
            ) from error


def _camera_kwargs(env_id: str) -> dict[str, Any]:
    """Return the render mode where the environment has one; image observations need none."""
    creator = gym.spec(env_id).entry_point
    function = load_env_creator(creator) if isinstance(creator, str) else creator
    parameters = inspect.signature(function).parameters.values() if function else ()
    takes_mode = any(
        p.name == "render_mode" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters
    )
    return {"render_mode": "rgb_array"} if takes_mode else {}


def _require_steerable(env: Environment, env_id: str) -> None:
    space = env.action_space
    if (
        not isinstance(space, gym.spaces.Box)
        or len(space.shape) != 1
        or not np.issubdtype(space.dtype, np.floating)
        or not space.is_bounded()
        or not (space.low < space.high).all()
    ):
        raise SfvgenError(
            f"{env_id} has the action space {space}, but a bounded vector of floats is needed, "
            "such as Box(-1.0, 1.0, (4,), float32)"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
