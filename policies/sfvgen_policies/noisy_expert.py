"""What the experts for other people's robots share: noise that leaves delicate moves alone."""

from __future__ import annotations

import numpy as np

from sfvgen_policies.random import CorrelatedNoise

_SMOOTHNESS = 0.7
_CAREFUL = 0.05  # share of the noise where the expert does not move


class NoisyExpert:
    """Base of experts; each gives its actions to :meth:`_disturbed`.

    Args:
        num_motions: how many of the action's first numbers move the hand.
        noise: standard deviation of temporally correlated noise added to these, as a fraction of
            full speed; all of it where the expert moves at full speed, in proportion to its speed
            elsewhere.

    Raises:
        ValueError: for a negative noise.
    """

    def __init__(self, num_motions: int, noise: float) -> None:
        self._num_motions = num_motions
        self._noise = CorrelatedNoise(num_motions, noise, _SMOOTHNESS)

    def reset(self, seed: int | None = None) -> None:
        self._noise.reset(seed)

    def _disturbed(self, action: np.ndarray) -> np.ndarray:
        """Clip an action to [-1, 1] and add the noise, float32 of the same shape."""
        action = np.clip(action, -1, 1)
        motion = action[: self._num_motions]
        speed = max(_CAREFUL, float(np.abs(motion).max()))
        motion += speed * self._noise.sample()
        return np.clip(action, -1, 1).astype(np.float32)
