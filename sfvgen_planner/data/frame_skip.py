"""One video frame per several environment steps."""

from typing import Any, SupportsFloat

import gymnasium as gym
from gymnasium.core import ActType, ObsType

from sfvgen_planner.data.rewards import reward_number
from sfvgen_planner.errors import require_count


class FrameSkip(gym.Wrapper[ObsType, ActType, ObsType, ActType], gym.utils.RecordConstructorArgs):
    """Hold each action for `num_steps` environment steps and add up their rewards.

    Observation, flags and info are those of the last step taken; an episode's end cuts the hold
    short.
    """

    def __init__(self, env: gym.Env[ObsType, ActType], num_steps: int) -> None:
        """Wrap `env`.

        Raises:
            SfvgenError: `num_steps` is below 1.
        """
        require_count("frame_skip", num_steps)
        gym.utils.RecordConstructorArgs.__init__(self, num_steps=num_steps)
        super().__init__(env)
        self.num_steps = num_steps

    def step(self, action: ActType) -> tuple[ObsType, SupportsFloat, bool, bool, dict[str, Any]]:
        """Hold `action`; return the last observation and the sum of the rewards."""
        total = 0.0
        for _ in range(self.num_steps):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += reward_number(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info
