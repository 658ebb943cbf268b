"""A small window on the screen."""

from __future__ import annotations

import numpy as np

from sfvgen_planner.errors import SfvgenError

SIDE = 512


class Window:
    """Shows frames at a steady rate, enlarged to ``SIDE`` pixels.

    Args:
        title: of the window.
        fps: frames per second.

    Raises:
        SfvgenError: where pygame is not installed.
    """

    def __init__(self, title: str, fps: int) -> None:
        try:
            import pygame
        except ImportError as error:
            raise SfvgenError(
                'render_mode="human" needs pygame: pip install pygame, or use '
                'render_mode="rgb_array"'
            ) from error
        self._pygame = pygame
        self._fps = fps
        pygame.display.init()
        pygame.display.set_caption(title)
        self._screen = pygame.display.set_mode((SIDE, SIDE))
        self._clock = pygame.time.Clock()

    def show(self, frame: np.ndarray) -> None:
        """Show a frame ``(H, W, 3)`` uint8."""
        surface = self._pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        self._pygame.transform.scale(surface, self._screen.get_size(), self._screen)
        self._pygame.event.pump()
        self._pygame.display.flip()
        self._clock.tick(self._fps)

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()
