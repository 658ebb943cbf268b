"""Fast weights: what the model learns of an episode while it happens."""

from sfvgen_planner.memory.bank import MemoryBank, NearestMemory
from sfvgen_planner.memory.bank_episode import BankChunk, BankEpisode, EpisodeWriter
from sfvgen_planner.memory.episodic import EpisodicMemory, MemoryWrite

__all__ = [
    "BankChunk",
    "BankEpisode",
    "EpisodeWriter",
    "EpisodicMemory",
    "MemoryBank",
    "MemoryWrite",
    "NearestMemory",
]
