"""Which env lives its episode in which of a memory's episodes."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from sfvgen_planner.errors import require

if TYPE_CHECKING:
    from sfvgen_planner.memory import EpisodicMemory
    from sfvgen_planner.world_model import VideoWorldModel


def check_memory(memory: EpisodicMemory, world_model: VideoWorldModel) -> None:
    """Refuse the memory of another world model."""
    require(
        memory.world_model is world_model,
        "the memory belongs to another world model: make it from the one that imagines",
    )


def begin_lives(memory: EpisodicMemory, indices: list[int], env: object) -> None:
    """Empty memories for episodes of ``env``."""
    memory.reset(indices)
    for index in indices:
        memory.lived_by[index] = weakref.ref(env)


def check_lives(memory: EpisodicMemory, indices: list[int], env: object) -> None:
    """Refuse to go on where another env has begun an episode in one of the memories since."""
    for index in indices:
        lived_by = memory.lived_by[index]
        require(
            lived_by is None or lived_by() is env,
            f"another env was reset with memory {index} since, so this one's episode is forgotten: "
            "reset it again, and give each env a memory of its own (memory_index)",
        )
