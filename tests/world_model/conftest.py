import pytest

from sfvgen_planner.world_model import tiny_world_model


@pytest.fixture(scope="session")
def model():
    return tiny_world_model()
