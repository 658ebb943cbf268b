"""Agreement of two evaluations, against closed forms and SciPy."""

import numpy as np
import pytest

from sfvgen_planner.evaluation.agreement import mean_rank_violation, pearson_r, spearman_rho
from sfvgen_planner.evaluation.statistics import mean_ranks

REAL = np.array([0.0, 0.25, 0.5, 1.0])


def test_pearson_in_closed_form():
    assert pearson_r(REAL, 0.1 + 0.5 * REAL) == pytest.approx(1)
    assert pearson_r(REAL, -REAL) == pytest.approx(-1)
    # Deviations (-1, 0, 1) and (-1, 2, -1) are orthogonal; (-1, 0, 1) and (-1, 1, 0) share 1 of 2.
    x = np.array([0.0, 1.0, 2.0])
    assert pearson_r(x, np.array([0.0, 3.0, 0.0])) == pytest.approx(0)
    assert pearson_r(x, np.array([0.0, 2.0, 1.0])) == pytest.approx(0.5)
    assert np.isnan(pearson_r(x, np.full(3, 0.1)))
    assert np.isnan(pearson_r(np.full(3, 0.1), x))


def test_spearman_in_closed_form():
    assert spearman_rho(REAL, REAL**5) == pytest.approx(1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) without ties; the two middle ones are swapped.
    assert spearman_rho(REAL, np.array([0.0, 0.5, 0.25, 1])) == pytest.approx(1 - 6 * 2 / (4 * 15))
    # Ranks (1, 2, 3) against (1.5, 1.5, 3): deviations (-1, 0, 1) and (-.5, -.5, 1).
    tied = spearman_rho(np.array([0.0, 0.1, 0.9]), np.array([0.2, 0.2, 0.3]))
    assert tied == pytest.approx(1.5 / np.sqrt(2 * 1.5))
    assert np.isnan(spearman_rho(REAL, np.zeros(4)))


def test_ranks_share_ties():
    assert mean_ranks(np.array([3.0, 1, 3, 2])).tolist() == [3.5, 1, 3.5, 2]


def test_rank_violation_in_closed_form():
    assert mean_rank_violation(REAL, REAL**2) == 0
    # Turned round, each policy's worst pair is with the one that is furthest from it.
    assert mean_rank_violation(REAL, -REAL) == pytest.approx((1 + 0.75 + 0.5 + 1) / 4)
    # The two best are swapped: they are 0.5 apart, and the others are in order.
    assert mean_rank_violation(REAL, np.array([0, 0.1, 0.9, 0.8])) == pytest.approx(0.5 * 2 / 4)
    # A tie violates the order once, for the policy that is worse in truth.
    assert mean_rank_violation(np.array([0.2, 0.8]), np.array([0.5, 0.5])) == pytest.approx(0.3)
    # Policies that are equally good in truth may be ordered in any way.
    assert mean_rank_violation(np.array([0.5, 0.5]), np.array([0.2, 0.8])) == 0


def test_scipy_agrees():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(20):
        real, other = rng.integers(0, 6, (2, 10)) / 5
        assert pearson_r(real, other) == pytest.approx(stats.pearsonr(real, other)[0])
        assert spearman_rho(real, other) == pytest.approx(stats.spearmanr(real, other)[0])
