"""The expert must do what the simulator then confirms."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sfvgen_envs  # noqa: F401  registers the environment
from sfvgen_policies import make_policy


def run(env: gym.Env[Any, Any], seed: int, noise: float = 0.0) -> tuple[dict[str, Any], np.ndarray]:
    policy = make_policy("expert", env, noise=noise)
    observation, info = env.reset(seed=seed)
    policy.reset(seed)
    actions, terminated = [], False
    while not terminated:
        actions.append(policy.act(observation, info["instruction"]))
        observation, _, terminated, _, info = env.step(actions[-1])
    return info, np.array(actions)


@pytest.mark.parametrize("recall", ["first", "previous"])
def test_expert_solves_the_highest_level(recall: str) -> None:
    env = gym.make("sfvgen/TabletopReturn-v0", level=4, recall=recall, image_size=16)
    for seed in range(500, 505):
        info, actions = run(env, seed)
        assert info["is_success"], (seed, info["instruction_results"])
        assert 9 * 5 < len(actions) < 18 * 5
        assert all(env.action_space.contains(action) for action in actions)
    env.close()


def test_the_whole_of_level_one_is_within_millimetres() -> None:
    env = gym.make("sfvgen/TabletopReturn-v0", level=1, recall="none", image_size=16)
    for seed in range(5):
        info, _ = run(env, seed)
        pad = env.unwrapped.plan.pads[env.unwrapped.instruction.place]
        cube = env.unwrapped.cube_position(env.unwrapped.instruction.cube)
        assert info["is_success"]
        assert np.linalg.norm(cube[:2] - pad) < 0.01
    env.close()


def test_noise_bends_the_path_and_is_overcome() -> None:
    env = gym.make("sfvgen/TabletopReturn-v0", level=1, recall="first", image_size=16)
    for seed in range(5):
        straight, noisy = run(env, seed), run(env, seed, noise=0.3)
        again = run(env, seed, noise=0.3)
        assert noisy[0]["is_success"]
        assert not np.array_equal(straight[1][:5], noisy[1][:5])
        np.testing.assert_array_equal(noisy[1], again[1])
    env.close()


def test_a_dropped_cube_is_fetched_again() -> None:
    env = gym.make("sfvgen/TabletopReturn-v0", level=1, recall="none", image_size=16)
    table = env.unwrapped
    policy = make_policy("expert", env)
    for seed in range(4):
        env.reset(seed=seed)
        cube = table.instruction.cube
        while not (table.is_grasped(cube) and table.cube_position(cube)[2] > 0.08):
            env.step(policy.act(None, ""))
        for _ in range(2):
            env.step(np.array([0, 0, 0, 1], np.float32))
        assert table.cube_position(cube)[2] < 0.03
        assert table.distance_m > 0.05
        terminated = False
        while not terminated:
            *_, terminated, _, info = env.step(policy.act(None, ""))
        assert info["is_success"]
    env.close()
