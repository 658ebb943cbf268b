"""Robots that others built, near enough to be seen in 64x64 pixels, with words and true seeds.

Each function makes one environment and is the entry point of an id in :func:`register_robots`.
Where the package behind it is missing, a ``gymnasium.error.DependencyNotInstalled`` says how to
get it.
"""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym
import numpy as np

from sfvgen_envs.wrappers import DrawnAsReset, FixedInstruction, SeededReset

Env = gym.Env[Any, Any]

_ROBOTS = "pip install 'sfvgen-planner[robots]'"
_METAWORLD = f"{_ROBOTS}; pip install --no-deps metaworld==3.1.1"
_Camera = tuple[float, float, float, tuple[float, float, float]]
"""Distance [m], azimuth and elevation [degrees], and the point looked at [m]."""
_PUSH_CAMERA = (0.65, 180.0, -50.0, (1.36, 0.75, 0.43))
_PICK_CAMERA = (1.0, 180.0, -40.0, (1.32, 0.75, 0.5))
_METAWORLD_CAMERA = (0.95, 150.0, -40.0, (0.0, 0.7, 0.08))
# A mark in the air: looked at along the side on which it varies least, and never behind the hand.
_REACH_CAMERA = (0.75, 250.0, -20.0, (0.0, 0.75, 0.17))


_BLOCK_COLOUR = (1.0, 0.75, 0.0, 1.0)


def register_robots() -> None:
    """Register the ids; nothing is imported before one is made."""
    for name, maker, max_episode_steps in (
        ("FetchPush", "make_fetch_push", 50),
        ("FetchPickAndPlace", "make_fetch_pick_and_place", 50),
        ("MetaWorld", "make_metaworld", 150),
        ("VisualCube", "make_visual_cube", 200),
    ):
        gym.register(
            id=f"sfvgen/{name}-v0",
            entry_point=f"sfvgen_envs.robots:{maker}",
            max_episode_steps=max_episode_steps,
        )


def make_fetch_push(render_mode: str | None = None, image_size: int = 64, **kwargs: Any) -> Env:
    """Gymnasium-Robotics' ``FetchPush-v4``: a block on a table, pushed to a red mark.

    Args:
        render_mode: ``"rgb_array"`` or None.
        image_size: height and width of the pictures in pixels.
        **kwargs: of the environment itself, such as ``reward_type``.
    """
    module = _import("gymnasium_robotics.envs.fetch.push", _ROBOTS)
    env = _make_fetch(module.MujocoFetchPushEnv, _PUSH_CAMERA, render_mode, image_size, kwargs)
    return FixedInstruction(env, "push the block to the red mark")


def make_fetch_pick_and_place(
    render_mode: str | None = None, image_size: int = 64, **kwargs: Any
) -> Env:
    """Gymnasium-Robotics' ``FetchPickAndPlace-v4``: the red mark may be in the air.

    The arguments are those of :func:`make_fetch_push`.
    """
    module = _import("gymnasium_robotics.envs.fetch.pick_and_place", _ROBOTS)
    env_class = module.MujocoFetchPickAndPlaceEnv
    env = _make_fetch(env_class, _PICK_CAMERA, render_mode, image_size, kwargs)
    return FixedInstruction(env, "bring the block to the red mark")


def make_metaworld(
    task: str = "", render_mode: str | None = None, image_size: int = 64, **kwargs: Any
) -> Env:
    """A task of Meta-World with its goal in the observation and drawn anew from every seed.

    Meta-World's own ids draw from 50 goals, whatever the seed of ``reset``.

    Args:
        task: such as ``"push-v3"``, which must be given; its words are the instruction.
        render_mode: ``"rgb_array"`` or None.
        image_size: height and width of the pictures in pixels.
        **kwargs: of the environment itself, such as ``reward_function_version``.

    Raises:
        ValueError: no task is given, or Meta-World has no such task.
    """
    tasks = _import("metaworld.env_dict", _METAWORLD).ALL_V3_ENVIRONMENTS
    if task not in tasks:
        raise ValueError(f"Meta-World has no task {task!r}; choose from {', '.join(tasks)}.")
    env = tasks[task](render_mode=render_mode, width=image_size, height=image_size, **kwargs)
    # What set_task sets, without freezing the goal of one pickled task.
    env._partially_observable = False
    del env.sawyer_observation_space
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env._set_task_called = True
    env.observation_space = env.sawyer_observation_space
    camera = _REACH_CAMERA if task.startswith("reach") else _METAWORLD_CAMERA
    env.mujoco_renderer.default_cam_config = _camera(camera)
    render_plainly(env.model)
    words = task.rpartition("-v")[0].replace("-", " ")
    return FixedInstruction(DrawnAsReset(SeededReset(env)), words)


def make_visual_cube(
    render_mode: str | None = None, image_size: int = 64, task_id: int | None = None, **kwargs: Any
) -> Env:
    """OGBench's ``visual-cube-single-v0``: a cube brought to a place that only its goal shows.

    ``info["goal"]`` of ``reset`` is the goal image.

    Args:
        render_mode: ``"rgb_array"`` or None; the observation is the picture anyway.
        image_size: height and width of the pictures in pixels.
        task_id: 1 to 5; by default every seed draws one.
        **kwargs: of the environment itself, such as ``env_type="double"``.
    """
    module = _import("sfvgen_envs.visual_cube", _ROBOTS)
    env = module.VisualCubeEnv(
        render_mode=render_mode, image_size=image_size, task_id=task_id, **kwargs
    )
    return FixedInstruction(env, "move the cube to its goal")


def render_plainly(model: Any) -> None:
    """Turn off what costs most of a frame: shadows, reflections and multi-sampling.

    Args:
        model: of MuJoCo, before its first picture, which fixes the multi-sampling.
    """
    model.light_castshadow[:] = 0
    model.mat_reflectance[:] = 0
    model.vis.quality.offsamples = 0


def _make_fetch(
    env_class: Any,
    camera: _Camera,
    render_mode: str | None,
    image_size: int,
    kwargs: dict[str, Any],
) -> Env:
    env: Env = env_class(
        **{"default_camera_config": _camera(camera), **kwargs},
        render_mode=render_mode,
        width=image_size,
        height=image_size,
    )
    model = env.unwrapped.model  # type: ignore[attr-defined]
    render_plainly(model)
    # Its own grey is that of the fingers.
    model.geom("object0").matid = -1
    model.geom("object0").rgba = _BLOCK_COLOUR
    # A cross of thin lines that follows the gripper.
    model.geom_rgba[model.geom_bodyid == model.body("robot0:mocap").id, 3] = 0
    return env


def _camera(camera: _Camera) -> dict[str, Any]:
    distance, azimuth, elevation, lookat = camera
    view = {"distance": distance, "azimuth": azimuth, "elevation": elevation}
    return {**view, "lookat": np.array(lookat)}


def _import(module: str, command: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise gym.error.DependencyNotInstalled(
            f"this robot is not installed ({error}); run: {command}"
        ) from error
