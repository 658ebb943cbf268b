"""Fast weights: what the model learns of an episode while it happens."""

from sfvgen_planner.memory.episodic import EpisodicMemory, MemoryWrite

__all__ = ["EpisodicMemory", "MemoryWrite"]
