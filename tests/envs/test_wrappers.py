"""The instruction as a part of the observation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
from sfvgen_envs import FixedInstruction, InstructionObservation


def test_instruction_follows_the_task() -> None:
    base = gym.make("sfvgen/TabletopReturn-v0", level=2, steps_per_instruction=2, image_size=16)
    env = InstructionObservation(base)
    observation, info = env.reset(seed=0)
    texts = [observation["instruction"]]
    terminated = False
    while not terminated:
        assert env.observation_space.contains(observation)
        assert observation["instruction"] == info["instruction"]
        idle = 0 * env.action_space.sample()
        observation, _, terminated, _, info = env.step(idle)
        texts.append(observation["instruction"])
    plan = base.unwrapped.plan
    assert texts[0] == plan.instructions[0].text
    assert texts[2] == plan.instructions[1].text
    assert texts[4] == plan.instructions[2].text
    env.close()


def test_refuses_what_it_cannot_wrap() -> None:
    with pytest.raises(ValueError, match="needs a Dict observation"):
        InstructionObservation(gym.make("CartPole-v1"))
    env = InstructionObservation(gym.make("sfvgen/TabletopReturn-v0", image_size=16))
    with pytest.raises(ValueError, match="wrap it only once"):
        InstructionObservation(env)
    env.close()


@pytest.mark.parametrize(
    ("instruction", "told"), [("räum auf", "printable ASCII"), ("a" * 9, "8 at most")]
)
def test_refuses_words_beyond_its_space(instruction: str, told: str) -> None:
    base = gym.make("sfvgen/TabletopReturn-v0", image_size=16)
    env = InstructionObservation(FixedInstruction(base, instruction), max_length=8)
    with pytest.raises(ValueError, match=told):
        env.reset(seed=0)
    env.close()


def test_refuses_an_env_that_tells_nothing() -> None:
    class Silent(gym.Wrapper):
        def reset(self, **kwargs: Any) -> Any:
            return super().reset(**kwargs)[0], {}

    env = InstructionObservation(Silent(gym.make("sfvgen/TabletopReturn-v0", image_size=16)))
    with pytest.raises(ValueError, match=r"needs info\['instruction'\].* got None"):
        env.reset(seed=0)
    env.close()
