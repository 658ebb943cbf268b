"""Confidence intervals against the normal approximation, which has a closed form."""

import numpy as np
import pytest

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation.statistics import Estimate


@pytest.mark.parametrize("draw", ["normal", "success"])
def test_bootstrap_agrees_with_the_normal_interval(draw):
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, 400) if draw == "normal" else rng.random(400) < 0.7
    values = values.astype(float)
    estimate = Estimate.of(values)
    half_width = 1.96 * values.std() / np.sqrt(len(values))
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.ci95[0] == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert estimate.ci95[1] == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = Estimate.of(rng.normal(size=40)).ci95
        hits += low <= 0 <= high
    # Binomial(200, 0.95), less a little for the percentile bootstrap at n = 40.
    assert 178 <= hits <= 200


def test_the_interval_is_repeatable_and_within_the_data():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert Estimate.of(values) == Estimate.of(values)
    low, high = Estimate.of(values).ci95
    assert 0 <= low <= 0.6 <= high <= 1
    assert Estimate.of([2.0]) == Estimate(2.0, (2.0, 2.0))


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0]]])
def test_nothing_and_nan_are_refused(values):
    with pytest.raises(SfvgenError, match="confidence interval"):
        Estimate.of(values)
