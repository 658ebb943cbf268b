"""Rewards as environments give them."""

from typing import SupportsFloat

from sfvgen_planner.errors import SfvgenError


def reward_number(reward: SupportsFloat) -> float:
    """A step's reward as a number.

    Raises:
        SfvgenError: It is something else, such as an array of one.
    """
    try:
        return float(reward)
    except (TypeError, ValueError) as error:
        raise SfvgenError(
            f"the environment's reward is {reward!r}, but it must be a number"
        ) from error
