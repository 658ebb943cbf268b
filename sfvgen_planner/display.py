"""Whether there is a display, and drawing without one."""

import os
import sys


def has_display() -> bool:
    """Whether windows can be seen."""
    displays = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform != "linux" or any(os.environ.get(name) for name in displays)


def render_without_display() -> None:
    """Let MuJoCo use EGL where there is no display; it chooses while it is imported."""
    if not has_display():
        os.environ.setdefault("MUJOCO_GL", "egl")
