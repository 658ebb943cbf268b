"""Which env lives its episode in which of a memory's episodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfvgen_planner.errors import require

if TYPE_CHECKING:
    from sfvgen_planner.memory import EpisodicMemory
    from sfvgen_planner.world_model import VideoWorldModel


class Life:
    """Stands for an env in its memory, and is copied and pickled with both."""


def check_memory(memory: EpisodicMemory, world_model: VideoWorldModel) -> None:
    """Refuse the memory of another world model."""
    require(
        memory.world_model is world_model,
        "the memory belongs to another world model: make it from the one that imagines",
    )


def begin_lives(memory: EpisodicMemory, indices: list[int], life: Life) -> None:
    """Empty memories for episodes of an env."""
    memory.reset(indices)
    for index in indices:
        memory.lived_by[index] = life


def check_lives(memory: EpisodicMemory, indices: list[int], life: Life) -> None:
    """Refuse to go on where another env has begun an episode in one of the memories since."""
    for index in indices:
        require(
            memory.lived_by[index] in (None, life),
            f"another env was reset with memory {index} since, so this one's episode is forgotten: "
            "reset it again, and give each env a memory of its own (memory_index)",
        )
