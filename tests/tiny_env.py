"""An environment of random pictures, each drawn from the seed and the step alone."""

from typing import Any

import gymnasium as gym
import numpy as np


class RandomPictureEnv(gym.Env[np.ndarray, np.ndarray]):
    """Shows unrelated pictures 64x64 and asks for ``"step k"`` at step k; it never ends."""

    observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gym.spaces.Box(-1, 1, (4,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._step = 0
        return self._picture(), {"instruction": "step 0"}

    def step(self, action: np.ndarray) -> Any:
        self._step += 1
        return self._picture(), 0.0, False, False, {"instruction": f"step {self._step}"}

    def _picture(self) -> np.ndarray:
        return self.np_random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
