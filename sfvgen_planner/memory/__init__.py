"""Fast weights: what the model learns of an episode while it happens."""

from sfvgen_planner.memory.adapter_files import trained_config
from sfvgen_planner.memory.bank import MemoryBank, NearestMemory
from sfvgen_planner.memory.bank_episode import BankChunk, BankEpisode, EpisodeWriter
from sfvgen_planner.memory.config import MEMORY_VARIANTS, MemoryConfig, memory_variant
from sfvgen_planner.memory.episodic import EpisodicMemory
from sfvgen_planner.memory.memory_write import MemoryWrite

__all__ = [
    "MEMORY_VARIANTS",
    "BankChunk",
    "BankEpisode",
    "EpisodeWriter",
    "EpisodicMemory",
    "MemoryBank",
    "MemoryConfig",
    "MemoryWrite",
    "NearestMemory",
    "memory_variant",
    "trained_config",
]
