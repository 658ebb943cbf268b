"""Policies from useless to perfect, which an evaluation should put in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sfvgen_policies import Policy, make_policy

from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning import PlanningPolicy, VideoPlanner


@dataclass(frozen=True)
class Rung:
    """One policy to evaluate.

    Attributes:
        name: that it goes by in the results.
        make: builds it for an environment, simulated or imagined.
        acts_on_images: whether the camera's picture and the instruction are all that it looks at,
            so that it can act in an imagined world too.
    """

    name: str
    make: Callable[[ImaginationWrapper], Policy]
    acts_on_images: bool = False

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


def video_planner(model: str) -> Rung:
    """The video planner of a shipped model or a checkpoint folder; slow.

    Its plans come from the model, so in imagination the model judges itself.
    """
    planner = VideoPlanner.from_pretrained(model)
    return Rung("video planner", lambda env: PlanningPolicy(env, planner), acts_on_images=True)
