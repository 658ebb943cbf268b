from dataclasses import replace
from functools import partial

import pytest

from sfvgen_planner.memory import MEMORY_VARIANTS, MemoryConfig
from sfvgen_planner.world_model import tiny_world_model


@pytest.fixture
def new_model(request):
    """Makes models alike, of the quicker kind where a test does not ask for both."""
    return partial(tiny_world_model, denoiser=getattr(request, "param", "transformer"))


@pytest.fixture
def model(new_model):
    return new_model()


@pytest.fixture(scope="session")
def shared_model():
    """For tests that change nothing of it."""
    return tiny_world_model()


@pytest.fixture(params=["paper", "ours"])
def config(request):
    """Fast enough to leave a trace in one write."""
    if request.param == "paper":
        return MemoryConfig(learning_rate=1e-2, num_steps=2)
    return replace(MEMORY_VARIANTS["ours"], num_time_codes=3, learning_rate=0.1)
