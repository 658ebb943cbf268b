"""Off-screen pictures of a MuJoCo scene, cheap by default and pretty on request."""

from __future__ import annotations

import atexit
import functools
import os
import sys
import weakref
from typing import Any, Literal, get_args

import numpy as np


def has_display() -> bool:
    """Whether windows can be seen."""
    return not sys.platform.startswith("linux") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


if not has_display():
    # MuJoCo chooses its GL backend while it is imported, and GLFW needs a display.
    os.environ.setdefault("MUJOCO_GL", "egl")

import mujoco  # noqa: E402

RenderQuality = Literal["fast", "pretty"]
RENDER_QUALITIES: tuple[str, ...] = get_args(RenderQuality)

_COSTLY_FLAGS = (
    mujoco.mjtRndFlag.mjRND_SHADOW,
    mujoco.mjtRndFlag.mjRND_REFLECTION,
    mujoco.mjtRndFlag.mjRND_SKYBOX,
    mujoco.mjtRndFlag.mjRND_HAZE,
)

_OPEN_CAMERAS: weakref.WeakSet[Camera] = weakref.WeakSet()


def _close_cameras() -> None:
    for camera in list(_OPEN_CAMERAS):
        camera.close()


@functools.cache  # once
def _close_cameras_at_exit() -> None:
    atexit.register(_close_cameras)


@functools.cache
def _process_that_opened_gl() -> int:
    return os.getpid()


class Camera:
    """A fixed camera of a model, rendered to uint8 RGB images of one size.

    The GL context is created with the first picture and freed by :meth:`close`, with the camera
    itself, or at the end of the process, whichever comes first.

    Args:
        model: compiled MuJoCo model.
        name: name of the camera in the model.
        size: (height, width) in pixels.
        quality: ``"fast"`` turns shadows, reflections, the skybox and multi-sampling off.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        name: str,
        size: tuple[int, int],
        quality: RenderQuality = "fast",
    ) -> None:
        self._model = model
        self._name = name
        self._size = size
        self._quality = quality
        self._renderer: mujoco.Renderer | None = None

    def render(self, data: mujoco.MjData) -> np.ndarray:
        """Return the present picture, uint8 of shape (height, width, 3).

        Raises:
            RuntimeError: no GL backend can be used, the message says what to install; or this
                process was forked from one that had rendered, where GL would wait forever.
        """
        if self._renderer is None:
            self._renderer = self._open()
            _OPEN_CAMERAS.add(self)
            # Exit handlers run last in, first out: this one must come after MuJoCo's own, which
            # it registers with the first context.
            _close_cameras_at_exit()
        self._renderer.update_scene(data, self._name)
        if self._quality == "fast":
            for flag in _COSTLY_FLAGS:
                self._renderer.scene.flags[flag] = 0
        return self._renderer.render()

    def close(self) -> None:
        """Free the GL context; a later :meth:`render` opens a new one."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy, here or in another process, opens a GL context of its own.
        return {**self.__dict__, "_renderer": None}

    def _open(self) -> mujoco.Renderer:
        if _process_that_opened_gl() != os.getpid():
            raise RuntimeError(
                "This process was forked from one that had already rendered, which GL does not "
                "survive; start worker processes with the method 'spawn' or 'forkserver'."
            )
        height, width = self._size
        samples = self._model.vis.quality.offsamples
        self._model.vis.quality.offsamples = 8 if self._quality == "pretty" else 0
        try:
            return mujoco.Renderer(self._model, height, width)
        except (RuntimeError, ImportError, AttributeError, mujoco.FatalError) as error:
            backend = os.environ.get("MUJOCO_GL") or "glfw"
            raise RuntimeError(
                f"MuJoCo cannot render with the GL backend {backend!r} ({error}); install EGL "
                "(Debian: apt-get install libegl1 libgl1-mesa-dri libopengl0) and set "
                "MUJOCO_GL=egl before mujoco is imported."
            ) from error
        finally:
            self._model.vis.quality.offsamples = samples
