"""The plans that are measured: their search, how long they hold and how many a second brings."""

from __future__ import annotations

from sfvgen_policies import Policy

from sfvgen_planner.errors import require
from sfvgen_planner.planning import CEM, CEMConfig, PlanningPolicy, PolicyConfig

WHOLE_CHUNKS = PolicyConfig(max_departure=None)
"""Planned again after a chunk and on a new instruction, whatever happens in between: figures tell
what plans are worth by themselves."""


def check_num_candidates(*counts: int) -> None:
    """Refuse a search of fewer than 2 candidates, before any work is spent."""
    require(min(counts) >= 2, f"num_candidates must be at least 2, got {min(counts)}")


def sized_cem(
    num_candidates: int, num_iterations: int, initial_std: float = CEMConfig.initial_std
) -> CEM:
    """CEM that is refitted to an eighth of its candidates and keeps half of these.

    Args:
        num_candidates: action sequences in each iteration, at least 2.
        num_iterations: refits.
        initial_std: spread of the first iteration.
    """
    num_elites = max(2, num_candidates // 8)
    return CEM(
        CEMConfig(
            num_samples=num_candidates,
            num_elites=num_elites,
            num_iterations=num_iterations,
            initial_std=initial_std,
            num_kept_elites=num_elites // 2,
        )
    )


def plans_per_second(policy: Policy) -> tuple[float, ...]:
    """One number of the episode that has just ended; none where there are no plans.

    A plan that was made together with those of other environments counts with its share of the
    seconds.
    """
    if not isinstance(policy, PlanningPolicy):
        return ()
    return (len(policy.plans) / sum(record.seconds for record in policy.plans),)
