"""Fixtures that several packages' tests share."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sfvgen_policies.inverse_dynamics import InverseDynamics

from sfvgen_planner.world_model import tiny_world_model

# The first test that forks from the server starts it for all of them. With torch loaded there, each
# process starts at once.
multiprocessing.set_forkserver_preload(
    ["pytest", "sfvgen_planner.world_model.trainer", "sfvgen_planner.evaluation.planning"]
)


@pytest.fixture(scope="session", autouse=True)
def _sb3_logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stable-Baselines3 makes a folder in the system's temporary one for each training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("sb3")))
        yield


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Whatever ran before in the same process, a test draws the same numbers."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint folder of random weights, inverse dynamics included; do not change it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_world_model().save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inverse = InverseDynamics(block_out_channels=(8, 8, 8, 8), hidden_size=16)
    inverse.save_pretrained(folder / "inverse_dynamics")
    return folder
