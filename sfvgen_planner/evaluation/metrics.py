"""Measures of imagined frames against real ones."""

from __future__ import annotations

import numpy as np

MAX_PSNR_DB = 60.0
"""Cap of the signal-to-noise ratio: identical videos have no finite one."""


def psnr_db(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each video [dB], at most ``MAX_PSNR_DB``.

    Args:
        frames: ``(N, T, H, W, 3)`` uint8.
        reference: same shape.

    Returns:
        ``(N,)``, from the squared error over all frames of a video.
    """
    error = frames.astype(np.float64) - reference.astype(np.float64)
    mean_square = np.square(error).mean(axis=(1, 2, 3, 4))
    floor = 255.0**2 / 10 ** (MAX_PSNR_DB / 10)
    return 10 * np.log10(255.0**2 / np.maximum(mean_square, floor))
