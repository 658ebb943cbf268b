"""Simulated tasks of sfvgen-planner, registered with Gymnasium under the namespace ``sfvgen``.

Importing this package registers them; without an import, name it in the id:
``gymnasium.make("sfvgen_envs:sfvgen/TabletopReturn-v0")``.
"""

from __future__ import annotations

import gymnasium as gym

from sfvgen_envs.robots import register_robots
from sfvgen_envs.wrappers import FixedInstruction, InstructionObservation

__all__ = ["FixedInstruction", "InstructionObservation", "register_envs"]


def register_envs() -> None:
    """Register every environment of this package; calling it again changes nothing."""
    if "sfvgen/TabletopReturn-v0" not in gym.registry:
        gym.register(
            id="sfvgen/TabletopReturn-v0",
            entry_point="sfvgen_envs.tabletop_return:make_tabletop_return",
        )
        register_robots()


register_envs()
