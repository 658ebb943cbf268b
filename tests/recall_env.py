"""An environment of random pictures that asks for something to be returned."""

from typing import Any

import gymnasium as gym
import numpy as np
from sfvgen_policies.random import RandomPolicy

from tests.tiny_env import RandomPictureEnv

RECALL = "tests.recall_env:Recall-v0"
NUM_STEPS = 16


class RecallEnv(RandomPictureEnv):
    """Asks to put something somewhere for 8 steps, then to return it for 8 more, and ends."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, _ = super().reset(seed=seed, options=options)
        return observation, {"instruction": "put it away"}

    def step(self, action: np.ndarray) -> Any:
        observation, reward, *_ = super().step(action)
        asked = "put it away" if self._step < NUM_STEPS // 2 else "return it"
        return observation, reward, False, self._step == NUM_STEPS, {"instruction": asked}


class ListeningPolicy(RandomPolicy):
    """Acts at random, but its episodes keep the instructions."""

    follows_instructions = True


gym.register(id="Recall-v0", entry_point=f"{__name__}:RecallEnv", disable_env_checker=True)
