"""The experts for other people's robots, and their noise."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from sfvgen_policies import make_policy
from sfvgen_policies.noisy_expert import NoisyExpert
from sfvgen_policies.registry import EXPERTS

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.evaluation.rollout import play, succeeded

# The package, the id, its arguments, the frame skip of its recipe, and how many seeds.
ROBOTS = [
    ("gymnasium_robotics", "sfvgen/FetchPush-v0", {}, 2, 8),
    ("gymnasium_robotics", "sfvgen/FetchPush-v0", {}, 1, 8),
    ("gymnasium_robotics", "sfvgen/FetchPickAndPlace-v0", {}, 1, 8),
    ("metaworld", "sfvgen/MetaWorld-v0", {"task": "reach-v3"}, 5, 5),
    ("metaworld", "sfvgen/MetaWorld-v0", {"task": "button-press-v3"}, 5, 5),
    ("ogbench", "sfvgen/VisualCube-v0", {}, 2, 1),
]


@pytest.fixture(autouse=True)
def _free_renderers() -> Iterator[None]:
    """Collect Gymnasium's renderers, which free their buffers in whatever context is current."""
    yield
    gc.collect()


def _env_of(module: str) -> gym.Env[Any, Any]:
    class Robot(gym.Env[Any, Any]):
        observation_space = action_space = gym.spaces.Box(-1, 1, (4,))

    Robot.__module__ = module
    return Robot()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("gymnasium_robotics.envs.maze.point_maze", "FetchExpert only knows FetchPush"),
        ("metaworld_of_mine", "only knows sfvgen/TabletopReturn-v0"),
        ("somewhere.else", "only knows sfvgen/TabletopReturn-v0"),
    ],
)
def test_the_expert_is_the_one_for_the_environment(module: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy("expert", _env_of(module))


@pytest.mark.parametrize("path", sorted(set(EXPERTS.values())))
def test_experts_refuse_other_environments_without_their_package(path: str) -> None:
    with pytest.raises(ValueError, match=f"{path.partition(':')[2]} only knows"):
        make_policy(path, _env_of("somewhere.else"))


def test_noise_is_in_proportion_to_the_speed_and_leaves_the_grip() -> None:
    expert = NoisyExpert(3, noise=0.1)
    expert.reset(0)
    draws = 2000
    spread = {
        speed: np.std(
            [expert._disturbed(np.array([speed, 0, 0, 1]))[1:3] for _ in range(draws)], axis=0
        )
        for speed in (0.0, 0.5, 1.0)
    }
    np.testing.assert_allclose(spread[0.5], 0.05, rtol=0.2)
    np.testing.assert_allclose(spread[1.0], 0.1, rtol=0.2)
    assert (spread[0.0] < 0.01).all()
    assert expert._disturbed(np.array([0.2, 0, 0, -1]))[3] == -1
    quiet = NoisyExpert(3, noise=0.0)
    assert quiet._disturbed(np.array([3.0, -0.5, 0, 1])).tolist() == [1, -0.5, 0, 1]


def _blank(renderer: mujoco.Renderer) -> np.ndarray:
    return np.zeros((renderer.height, renderer.width, 3), np.uint8)


@pytest.mark.parametrize(("package", "env_id", "kwargs", "frame_skip", "num_seeds"), ROBOTS)
def test_experts_do_what_random_actions_do_not(
    package: str,
    env_id: str,
    kwargs: dict[str, Any],
    frame_skip: int,
    num_seeds: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(package)
    # None of the policies looks at the pictures.
    monkeypatch.setattr(mujoco.Renderer, "render", _blank)
    env = make_env(env_id, kwargs, frame_skip)
    rates = {}
    for name in ("expert", "random"):
        episodes = play(env, make_policy(name, env), range(1000, 1000 + num_seeds))
        rates[name] = np.mean([succeeded(episode) for episode in episodes])
    env.close()
    assert rates["expert"] == 1
    assert rates["random"] <= 0.25


@pytest.mark.parametrize("task", ["reach-v3", "reach-wall-v3"])
def test_the_expert_reaches_the_middle_of_the_goal(task: str) -> None:
    pytest.importorskip("metaworld")
    env = make_env("sfvgen/MetaWorld-v0", {"task": task}, 5)
    simulated: Any = env.unwrapped
    for _ in play(env, make_policy("expert", env), range(1000, 1004)):
        assert np.linalg.norm(simulated.tcp_center - simulated._target_pos) < 0.02
    env.close()
