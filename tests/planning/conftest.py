"""What the tests of planners and of their objectives share."""

import pytest

from sfvgen_planner.imagination import ImaginationWrapper
from tests.point_mass import PointMassEnv, PointMassWorldModel


@pytest.fixture
def imagination():
    env = ImaginationWrapper(PointMassEnv(), PointMassWorldModel())
    env.reset(seed=0)
    return env
