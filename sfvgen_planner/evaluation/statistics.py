"""Means with honest error bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sfvgen_planner.errors import SfvgenError

NUM_RESAMPLES = 10_000
_BLOCK = 1_000


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % bootstrap confidence interval ``(low, high)``."""

    mean: float
    ci95: tuple[float, float]

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
        """Mean of independent ``values``, one per episode, with a percentile bootstrap interval.

        Whole episodes are resampled, 10,000 times, from a fixed ``seed``. Where all values are
        equal the interval has no width: the bootstrap knows nothing of what it has not seen.

        Raises:
            SfvgenError: there are no values, or one is not finite.
        """
        sample = np.asarray(values, np.float64)
        if sample.ndim != 1 or sample.size == 0 or not np.isfinite(sample).all():
            raise SfvgenError(
                "a confidence interval needs at least one value, all of them finite, "
                f"got {np.array2string(sample, threshold=8)}"
            )
        rng = np.random.default_rng(seed)
        means = [
            sample[rng.integers(sample.size, size=(_BLOCK, sample.size))].mean(axis=1)
            for _ in range(NUM_RESAMPLES // _BLOCK)
        ]
        low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
        return cls(float(sample.mean()), (float(low), float(high)))
