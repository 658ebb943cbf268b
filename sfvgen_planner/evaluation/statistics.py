"""Means with honest error bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sfvgen_planner.errors import SfvgenError

NUM_RESAMPLES = 10_000
NUM_STATISTIC_RESAMPLES = 1_000
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
        needs = "a confidence interval needs at least one value, all of them finite"
        sample = _finite(values, 1, needs)
        rng = np.random.default_rng(seed)
        means = [
            sample[rng.integers(sample.size, size=(_BLOCK, sample.size))].mean(axis=1)
            for _ in range(NUM_RESAMPLES // _BLOCK)
        ]
        low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
        return cls(float(sample.mean()), (float(low), float(high)))

    @classmethod
    def of_ratio(
        cls,
        values: Sequence[float] | np.ndarray,
        references: Sequence[float] | np.ndarray,
        seed: int = 0,
    ) -> Estimate:
        """Mean of ``values`` over the mean of ``references``, paired: whole pairs are resampled.

        Raises:
            SfvgenError: the two differ in number, one is not finite or negative, or the
                references are 0.
        """
        pairs = np.stack([np.asarray(values, np.float64), np.asarray(references, np.float64)])
        if pairs.size == 0 or not (np.isfinite(pairs).all() and (pairs >= 0).all()):
            raise SfvgenError("a ratio needs at least one pair of finite values of 0 or more")
        if not pairs[1].any():
            raise SfvgenError("a ratio to a mean of 0 says nothing")
        rng = np.random.default_rng(seed)
        rows = rng.integers(pairs.shape[1], size=(NUM_RESAMPLES, pairs.shape[1]))
        means = pairs[:, rows].mean(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = np.nanquantile(means[0] / means[1], [0.025, 0.975])
        top, bottom = pairs.mean(axis=1)
        return cls(float(top / bottom), (float(low), float(high)))

    @classmethod
    def of_runs(cls, values: np.ndarray, seed: int = 0) -> Estimate:
        """Mean of several runs on the same episodes, such as policies of other training seeds.

        Runs and episodes are resampled independently of each other, 10,000 times (the pigeonhole
        bootstrap; Owen, 2007).

        Args:
            values: ``(R, E)``, of R runs on E episodes.
            seed: of the resampling.

        Raises:
            SfvgenError: there are no values, or one is not finite.
        """
        needs = "the mean of runs needs finite values (runs, episodes), at least one"
        sample = _finite(values, 2, needs)
        rng = np.random.default_rng(seed)
        # How often each run and each episode was drawn.
        runs, episodes = (
            rng.multinomial(size, [1 / size] * size, size=NUM_RESAMPLES) for size in sample.shape
        )
        means = ((runs @ sample) * episodes).sum(axis=1) / sample.size
        low, high = np.quantile(means, [0.025, 0.975])
        return cls(float(sample.mean()), (float(low), float(high)))

    @classmethod
    def of_statistic(
        cls,
        statistic: Callable[[np.ndarray, np.ndarray], float],
        truths: Sequence[np.ndarray],
        predictions: Sequence[np.ndarray],
        seed: int = 0,
    ) -> Estimate:
        """A statistic of all frames of all episodes; whole episodes are resampled, 1,000 times.

        Args:
            statistic: of truths and predictions ``(N,)``; NaN where a resample has none.
            truths: one array ``(T,)`` per episode.
            predictions: likewise.
            seed: of the resampling.

        Raises:
            SfvgenError: the episodes as they are have no such statistic.
        """
        value = statistic(np.concatenate(truths), np.concatenate(predictions))
        if not np.isfinite(value):
            raise SfvgenError(
                "the statistic needs episodes whose truths differ, such as both true and false "
                "labels; take more episodes"
            )
        rng = np.random.default_rng(seed)
        resampled = []
        for _ in range(NUM_STATISTIC_RESAMPLES):
            rows = rng.integers(len(truths), size=len(truths))
            some = [truths[row] for row in rows], [predictions[row] for row in rows]
            resampled.append(statistic(np.concatenate(some[0]), np.concatenate(some[1])))
        low, high = np.nanquantile(resampled, [0.025, 0.975])
        return cls(float(value), (float(low), float(high)))


def _finite(values: Sequence[float] | np.ndarray, num_axes: int, needs: str) -> np.ndarray:
    """The values as an array, or an error that says what it ``needs``."""
    sample = np.asarray(values, np.float64)
    if sample.ndim != num_axes or sample.size == 0 or not np.isfinite(sample).all():
        raise SfvgenError(f"{needs}, got {np.array2string(sample, threshold=8)}")
    return sample


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Chance that a true case scores higher than a false one, ties counting half.

    Args:
        labels: ``(N,)`` bool.
        scores: ``(N,)``.

    Returns:
        In [0, 1]; NaN where all labels are alike.
    """
    truth = np.asarray(labels, bool)
    num_true, num_false = int(truth.sum()), int((~truth).sum())
    if not num_true or not num_false:
        return float("nan")
    # The Mann-Whitney statistic.
    above = mean_ranks(scores)[truth].sum() - num_true * (num_true + 1) / 2
    return float(above / (num_true * num_false))


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks ``(N,)`` of ``values`` ``(N,)``, from 1; ties share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, num_bins: int = 15
) -> float:
    """Mean distance between how sure and how right, over bins of equal width (Guo et al., 2017).

    Args:
        labels: ``(N,)`` bool.
        probabilities: ``(N,)`` in [0, 1].
        num_bins: of the probabilities.

    Returns:
        In [0, 1].
    """
    bins = np.minimum((probabilities * num_bins).astype(int), num_bins - 1)
    sure = np.bincount(bins, probabilities, num_bins)
    right = np.bincount(bins, np.asarray(labels, float), num_bins)
    return float(np.abs(sure - right).sum() / len(bins))


def r_squared(truths: np.ndarray, predictions: np.ndarray) -> float:
    """Share of the variance of ``truths`` ``(N,)`` that is predicted.

    Returns:
        At most 1; 0 for the mean as the prediction; NaN where all truths are alike.
    """
    spread = float(np.square(truths - np.mean(truths)).sum())
    return 1 - float(np.square(truths - predictions).sum()) / spread if spread else float("nan")


def mean_absolute_error(truths: np.ndarray, predictions: np.ndarray) -> float:
    """Mean distance between ``truths`` and ``predictions``, both ``(N,)``."""
    return float(np.abs(truths - predictions).mean())
