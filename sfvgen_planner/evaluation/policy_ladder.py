"""Policies from useless to perfect, which an evaluation should put in this order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sfvgen_policies import POLICIES, Policy, make_policy

from sfvgen_planner.evaluation.planning import METHODS, PlanningConfig
from sfvgen_planner.imagination import ImaginationWrapper


@dataclass(frozen=True)
class Rung:
    """One policy to evaluate.

    Attributes:
        name: that it goes by in the results.
        make: builds it for an environment, simulated or imagined.
        acts_on_images: whether the camera's picture and the instruction are all that it looks at,
            so that it can act in an imagined world too.
        fields: further settings that its figures tell.
    """

    name: str
    make: Callable[[ImaginationWrapper], Policy]
    acts_on_images: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, policy: str, **kwargs: Any) -> Rung:
        """A policy as ``make_policy`` takes it."""
        return cls(name, lambda env: make_policy(policy, env, **kwargs))


LADDER = (
    Rung.of("still", "still"),
    Rung.of("random", "random"),
    Rung.of("play", "play"),
    Rung.of("expert, stops after 10 steps", "timed", end=10),
    Rung.of("expert, stops after 12 steps", "timed", end=12),
    Rung.of("expert, begins after 20 steps", "timed", begin=20),
    Rung.of("expert, noise 1", "expert", noise=1.0),
    Rung.of("expert, noise 0.75", "expert", noise=0.75),
    Rung.of("expert, noise 0.6", "expert", noise=0.6),
    Rung.of("expert, noise 0.45", "expert", noise=0.45),
    Rung.of("expert", "expert"),
)
"""For one instruction of ``sfvgen/TabletopReturn-v0``, which gives it 32 steps."""

PLANNERS = tuple(name for name in METHODS if name not in POLICIES)
"""The planners of ``sfvgen eval planning``."""


def planner_rung(name: str, model: str, device: str) -> Rung:
    """A planner, as ``sfvgen eval planning`` measures it; slow.

    Where its plans come from the model, the model judges itself in imagination.

    Args:
        name: one of ``PLANNERS``.
        model: shipped name or checkpoint folder that it plans with.
        device: of the model.
    """
    method, config = METHODS[name], PlanningConfig(model=model, device=device)
    return Rung(
        name,
        lambda env: method.make([env], config)[0],
        acts_on_images=method.imagines,
        fields=method.settings(config),
    )
