"""What an environment's camera and sensors show."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image
from typing_extensions import TypeIs

from sfvgen_planner.data.episode import FloatArray, FrameArray
from sfvgen_planner.errors import SfvgenError


def camera_frame(
    env: gym.Env[Any, Any], observation: object, image_size: int | tuple[int, int] | None = None
) -> FrameArray:
    """Return the present camera picture.

    It is the observation's entry `image` or the observation itself, where that is a picture, else
    what `env.render()` returns in the render mode `rgb_array`.

    Args:
        env: An environment that was reset.
        observation: Its latest observation.
        image_size: Size of the result in pixels, (height, width) or one number for both; None
            keeps the camera's own.

    Returns:
        `(H, W, 3)` uint8, RGB.

    Raises:
        SfvgenError: The environment shows no RGB picture.
    """
    frame = observation.get("image") if isinstance(observation, Mapping) else observation
    if not _is_picture(frame):
        frame = _render(env)
    if not _is_picture(frame):
        raise SfvgenError(
            f"{_name(env)} shows no camera picture: its observation is none and render() gives "
            f"{_describe(frame)}, but an RGB array (H, W, 3) of uint8 is needed; make it with "
            "render_mode='rgb_array'"
        )
    if image_size is None:
        return frame
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX))


def check_camera(env: gym.Env[Any, Any]) -> None:
    """Refuse an environment that `camera_frame` gets no picture of, before it is reset.

    Raises:
        SfvgenError: Neither its observation space nor its render mode promises one.
    """
    space = env.observation_space
    if isinstance(space, gym.spaces.Dict) and "image" in space.spaces:
        space = space["image"]
    is_picture = (
        isinstance(space, gym.spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and space.shape[2] == 3
    )
    if not is_picture and env.render_mode != "rgb_array":
        raise SfvgenError(
            f"{_name(env)} has no camera: it shows no RGB pictures (H, W, 3) of uint8 but {space}; "
            f"make it with render_mode='rgb_array' instead of {env.render_mode!r}"
        )


def proprioception(observation: object) -> FloatArray | None:
    """Return what an observation tells of the robot itself, as `(P,)` float32, or None.

    It is the entry `proprio` (ours) or `observation` (Gymnasium-Robotics) of a Dict observation,
    or the whole observation where that is a vector.
    """
    if isinstance(observation, Mapping):
        observation = observation.get("proprio", observation.get("observation"))
    if not isinstance(observation, np.ndarray) or observation.ndim != 1:
        return None
    return observation.astype(np.float32)


def _render(env: gym.Env[Any, Any]) -> object:
    try:
        return env.render()
    except gym.error.Error as error:
        raise SfvgenError(f"{_name(env)} cannot be filmed: {error}") from error
    except NotImplementedError as error:
        raise SfvgenError(
            f"{_name(env)} shows no camera picture: its observation is none and it has no render()"
        ) from error


def _is_picture(value: object) -> TypeIs[FrameArray]:
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.uint8
        and value.ndim == 3
        and value.shape[2] == 3
    )


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def _name(env: gym.Env[Any, Any]) -> str:
    return env.spec.id if env.spec is not None else str(env.unwrapped)
