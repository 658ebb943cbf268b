"""Reaching a line: a point mass that policies of known quality bring to the right, or do not."""

from functools import partial

import numpy as np
from gymnasium.spaces import Box

from sfvgen_planner.evaluation.policy_ladder import Rung
from tests.point_mass import SIZE, PointMassEnv, PointMassOutcomeHead, draw, locate

LINE = 0.7
NUM_STEPS = 16


class ReachEnv(PointMassEnv):
    """Success is to be right of a line at the end; the observation is the picture."""

    def __init__(self):
        super().__init__(num_steps=NUM_STEPS)
        self.observation_space = Box(0, 255, (SIZE, SIZE, 3), np.uint8)

    def reset(self, **kwargs):
        _, info = super().reset(**kwargs)
        return self.render(), info

    def step(self, action):
        _, reward, terminated, truncated, info = super().step(action)
        return self.render(), reward, terminated, truncated, info

    def _info(self):
        seen = locate(draw(self.position))[0]
        return {"instruction": "right", "is_success": bool(seen >= LINE)}


class LineHead(PointMassOutcomeHead):
    """Knows the line."""

    def success_logits(self, latents, token_ids):
        return 1000 * (super().success_logits(latents, token_ids) - LINE)


class Mover:
    """Goes right at a speed, and left from some step on."""

    def __init__(self, env, speed, turn=NUM_STEPS):
        self.speed, self.turn = speed, turn

    def reset(self, seed=None):
        self.num_steps = 0

    def act(self, observation, instruction):
        assert observation.shape == (SIZE, SIZE, 3)
        self.num_steps += 1
        way = 1 if self.num_steps <= self.turn else -1
        return np.float32([way * self.speed, 0])


SPEEDS = (0, 0.15, 0.2, 0.25, 0.3, 0.5)


def mover(speed, turn=NUM_STEPS, **kwargs):
    return Rung(f"speed {speed}, turn {turn}", partial(Mover, speed=speed, turn=turn), **kwargs)
