"""Fixtures that several tests of evaluations share."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sfvgen_planner.memory import MEMORY_VARIANTS, EpisodicMemory
from sfvgen_planner.world_model import tiny_world_model


@pytest.fixture
def looped_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """As the slow-fast loop leaves one: adapters trained away from their start."""
    folder = tmp_path / "looped"
    shutil.copytree(tiny_checkpoint, folder)
    ours = MEMORY_VARIANTS["ours"]
    assert ours is not None
    config = replace(ours, rank=2, num_time_codes=2, learning_rate=0.1)
    EpisodicMemory(tiny_world_model(), config, seed=5).save_pretrained(folder / "memory")
    return folder
