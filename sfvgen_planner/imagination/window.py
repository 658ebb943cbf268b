"""A small window on the screen."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled

from sfvgen_planner.errors import SfvgenError

logger = logging.getLogger(__name__)

SIDE = 512
_DRIVER = "SDL_VIDEODRIVER"
# Of those that SDL tries by itself on Linux, without `offscreen`: its EGL display is that of
# MuJoCo's renderers, which it takes down with it as it closes.
_SEEN_ON_LINUX = "x11,wayland,kmsdrm"
_UNSEEN = "dummy"


class Window:
    """Shows frames at a steady rate, enlarged to ``SIDE`` pixels.

    Args:
        title: of the window.
        fps: frames per second.

    Raises:
        DependencyNotInstalled: where pygame is not installed.
        SfvgenError: where no window can be opened.
    """

    def __init__(self, title: str, fps: int) -> None:
        try:
            import pygame
        except ImportError as error:
            raise DependencyNotInstalled(
                "render_mode=\"human\" needs pygame: pip install 'sfvgen-planner[window]', or use "
                'render_mode="rgb_array"'
            ) from error
        self._pygame = pygame
        self._title, self._fps = title, fps
        self._clock = pygame.time.Clock()
        if sys.platform != "linux" or _DRIVER in os.environ:
            self._open()
            return
        os.environ[_DRIVER] = _SEEN_ON_LINUX
        try:
            self._open()
        except SfvgenError:
            os.environ[_DRIVER] = _UNSEEN
            self._open()
            logger.warning(
                'render_mode="human" finds no display, so its window can\'t be seen; use '
                'render_mode="rgb_array"'
            )

    def show(self, frame: np.ndarray) -> None:
        """Show a frame ``(H, W, 3)`` uint8."""
        pygame = self._pygame
        # There is one window to a process: another environment may have closed it.
        screen = pygame.display.get_surface() or self._open()
        surface = pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        pygame.transform.scale(surface, screen.get_size(), screen)
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self._fps)

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()

    def _open(self) -> Any:
        pygame = self._pygame
        try:
            pygame.display.init()
            pygame.display.set_caption(self._title)
            return pygame.display.set_mode((SIDE, SIDE))
        except pygame.error as error:
            raise SfvgenError(
                f'render_mode="human" can open no window here ({error}); use '
                'render_mode="rgb_array"'
            ) from error
