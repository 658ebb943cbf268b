"""How far two evaluations of the same policies agree: correlation and order."""

from __future__ import annotations

import numpy as np

from sfvgen_planner.evaluation.statistics import mean_ranks


def pearson_r(real: np.ndarray, other: np.ndarray) -> float:
    """Linear correlation of two evaluations ``(P,)`` of P policies.

    Returns:
        In [-1, 1]; NaN where one evaluation finds all policies equally good.
    """
    x, y = (np.asarray(values, np.float64) - np.mean(values) for values in (real, other))
    # Centred by rounding alone is no spread.
    if np.ptp(real) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.clip((x @ y) / (np.linalg.norm(x) * np.linalg.norm(y)), -1, 1))


def spearman_rho(real: np.ndarray, other: np.ndarray) -> float:
    """Correlation of the ranks, ties sharing their mean rank; like :func:`pearson_r` otherwise."""
    return pearson_r(mean_ranks(real), mean_ranks(other))


def mean_rank_violation(real: np.ndarray, other: np.ndarray) -> float:
    """Mean maximum rank violation, MMRV (SIMPLER, Li et al., 2024).

    Two policies that ``other`` orders differently than ``real`` does are as bad as their real
    difference. For each policy the worst such pair counts::

        MMRV = 1/P * sum_i max_j |R_i - R_j| * [(S_i < S_j) != (R_i < R_j)]

    Args:
        real: success rates R ``(P,)`` of P policies.
        other: their success rates S ``(P,)`` as the evaluation that is judged finds them.

    Returns:
        In the unit of ``real``, at least 0; 0 where the order is the same.
    """
    gap = np.abs(real[:, None] - real)
    violated = (other[:, None] < other) != (real[:, None] < real)
    return float((gap * violated).max(axis=1).mean())
