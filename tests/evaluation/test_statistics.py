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


def test_the_interval_of_runs_knows_both_runs_and_episodes():
    rng = np.random.default_rng(2)
    runs, episodes = rng.normal(0, 1, (40, 1)), rng.normal(0, 3, (1, 100))
    estimate = Estimate.of_runs(runs + episodes)
    # Two independent sums: their means' variances add up.
    half_width = 1.96 * np.sqrt(runs.var() / 40 + episodes.var() / 100)
    assert estimate.mean == pytest.approx(runs.mean() + episodes.mean())
    assert np.diff(estimate.ci95) == pytest.approx(2 * half_width, rel=0.05)


def test_the_interval_of_one_run_is_that_of_its_episodes():
    values = np.random.default_rng(3).normal(size=50)
    found, expected = Estimate.of_runs(values[None]), Estimate.of(values)
    assert found.mean == pytest.approx(expected.mean)
    assert found.ci95 == pytest.approx(expected.ci95, abs=0.02)


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.zeros(3), np.full((2, 2), np.nan)])
def test_runs_without_numbers_are_refused(values):
    with pytest.raises(SfvgenError, match="needs finite values"):
        Estimate.of_runs(values)
