"""Other people's robots: what the adapter adds, and, where they are installed, the robots."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from sfvgen_envs import FixedInstruction
from sfvgen_envs.robots import render_plainly
from sfvgen_envs.wrappers import SeededReset

from sfvgen_planner.data.camera import camera_frame
from sfvgen_planner.data.environment import Environment, make_env
from sfvgen_planner.errors import SfvgenError

ROBOTS = [
    ("gymnasium_robotics", "sfvgen/FetchPush-v0", {}, "push the block to the red mark"),
    ("gymnasium_robotics", "sfvgen/FetchPickAndPlace-v0", {}, "bring the block to the red mark"),
    ("metaworld", "sfvgen/MetaWorld-v0", {"task": "button-press-v3"}, "button press"),
    ("ogbench", "sfvgen/VisualCube-v0", {}, "move the cube to its goal"),
]
IDS = [env_id for _, env_id, _, _ in ROBOTS]


@pytest.fixture(autouse=True)
def _free_renderers() -> Iterator[None]:
    """Collect Gymnasium's renderers, which free their buffers in whatever context is current."""
    yield
    gc.collect()


class DeafEnv(gym.Env[np.ndarray, np.ndarray]):
    """Draws its observation from ``np_random``, but does not listen to the seed of ``reset``."""

    observation_space = gym.spaces.Box(0, 1, (3,))
    action_space = gym.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.np_random.random(3), {"goal": 1}

    def step(self, action: np.ndarray) -> Any:
        return self.np_random.random(3), 0.0, False, False, {"success": True}


def test_the_words_are_in_every_info_beside_what_was_there() -> None:
    env = FixedInstruction(DeafEnv(), "push")
    assert env.reset()[1] == {"goal": 1, "instruction": "push"}
    assert env.step(np.zeros(2))[4] == {"success": True, "instruction": "push"}


def test_a_seed_reaches_an_environment_that_ignores_it() -> None:
    env = SeededReset(DeafEnv())
    first, going_on, again = (env.reset(seed=seed)[0].tolist() for seed in (7, None, 7))
    assert first == again == np.random.default_rng(7).random(3).tolist()
    assert going_on != first


@pytest.mark.parametrize(("package", "env_id", "kwargs", "_words"), ROBOTS, ids=IDS)
def test_a_missing_package_is_named_with_what_installs_it(
    package: str, env_id: str, kwargs: dict[str, Any], _words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "sfvgen_envs.visual_cube", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SfvgenError, match=rf"{package}.*pip install 'sfvgen-planner\[robots\]'"):
        make_env(env_id, kwargs)


def test_plain_rendering_drops_shadows_reflections_and_multi_sampling() -> None:
    mujoco = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_string(
        """<mujoco>
          <visual><quality offsamples="4"/></visual>
          <asset><material name="glass" reflectance="0.5"/></asset>
          <worldbody><light castshadow="true"/><geom size="1" material="glass"/></worldbody>
        </mujoco>"""
    )
    render_plainly(model)
    assert not model.light_castshadow.any()
    assert not model.mat_reflectance.any()
    assert model.vis.quality.offsamples == 0


def _film(env: Environment, seed: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    observation, info = env.reset(seed=seed)
    frames, infos = [camera_frame(env, observation).copy()], [info]
    for action in np.random.default_rng(0).uniform(-1, 1, (3, *env.action_space.shape)):
        observation, *_, info = env.step(action.astype(np.float32))
        frames.append(camera_frame(env, observation).copy())
        infos.append(info)
    return np.stack(frames), infos


@pytest.mark.parametrize(("package", "env_id", "kwargs", "words"), ROBOTS, ids=IDS)
def test_robots_repeat_with_the_seed_and_tell_what_is_asked_and_whether_it_is_done(
    package: str, env_id: str, kwargs: dict[str, Any], words: str
) -> None:
    pytest.importorskip(package)
    env = make_env(env_id, kwargs)
    first, infos = _film(env, 3)
    other, _ = _film(env, 4)
    again, _ = _film(env, 3)
    env.close()
    assert first.shape == (4, 64, 64, 3)
    assert first.std() > 10
    assert (first[0] != first[-1]).any()
    np.testing.assert_array_equal(first, again)
    assert (first[0] != other[0]).any()
    assert {info["instruction"] for info in infos} == {words}
    assert all("success" in info or "is_success" in info for info in infos[1:])


def test_fetchs_block_is_seen_where_it_is_and_nothing_else_has_its_colour() -> None:
    pytest.importorskip("gymnasium_robotics")
    env = make_env("sfvgen/FetchPush-v0")
    model = env.unwrapped.model  # type: ignore[attr-defined]
    columns, places = [], []
    for seed in range(8):
        observation, _ = env.reset(seed=seed)
        red, green, blue = np.moveaxis(camera_frame(env, observation).astype(int), -1, 0)
        yellow = (np.minimum(red, green) > blue + 60) & (abs(red - green) < 100)
        columns.append(np.nonzero(yellow)[1].mean())
        places.append(observation["achieved_goal"][1])
    model.geom("object0").rgba[3] = 0
    frame = camera_frame(env, env.reset(seed=0)[0]).astype(int)
    env.close()
    assert abs(np.corrcoef(columns, places)[0, 1]) > 0.98
    assert not (frame[..., :2].min(axis=-1) > frame[..., 2] + 60).any()


def test_metaworld_draws_a_new_goal_for_every_seed() -> None:
    pytest.importorskip("metaworld")
    env = make_env("sfvgen/MetaWorld-v0", {"task": "reach-v3"})
    goals = {tuple(env.reset(seed=seed)[0][-3:]) for seed in range(60)}
    env.close()
    assert len(goals) == 60


def test_the_first_picture_of_metaworld_shows_the_goal_of_its_seed() -> None:
    pytest.importorskip("metaworld")
    env = make_env("sfvgen/MetaWorld-v0", {"task": "reach-v3"})
    simulated: Any = env.unwrapped
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        np.testing.assert_allclose(simulated.data.site("goal").xpos, observation[-3:])
    env.close()


def test_the_direction_of_reachs_mark_tells_mostly_where_it_is() -> None:
    pytest.importorskip("metaworld")
    env = make_env("sfvgen/MetaWorld-v0", {"task": "reach-v3"})
    simulated: Any = env.unwrapped
    low, high = (getattr(simulated._random_reset_space, name)[-3:] for name in ("low", "high"))
    view = simulated.mujoco_renderer.default_cam_config
    env.close()
    azimuth, elevation = np.deg2rad([view["azimuth"], view["elevation"]])
    level = [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation)]
    camera = view["lookat"] - view["distance"] * np.array([*level, np.sin(elevation)])
    ways = np.random.default_rng(0).uniform(low, high, (2000, 3)) - camera
    # Where each line of sight enters and leaves all places of the mark, as shares of the way.
    sides = np.stack([(low - camera) / ways, (high - camera) / ways])
    middles = (sides.min(axis=0).max(axis=1) + sides.max(axis=0).min(axis=1)) / 2
    errors = np.abs(middles - 1) * np.linalg.norm(ways, axis=1)
    assert np.mean(errors < 0.05) > 0.85


def test_an_unknown_task_of_metaworld_is_told() -> None:
    pytest.importorskip("metaworld")
    for kwargs, name in (({"task": "dance"}, "dance"), ({}, "")):
        with pytest.raises(SfvgenError, match=rf"no task '{name}'; choose from .*reach-v3"):
            make_env("sfvgen/MetaWorld-v0", kwargs)


def test_the_cubes_task_is_the_one_asked_for() -> None:
    pytest.importorskip("ogbench")
    env = make_env("sfvgen/VisualCube-v0", {"task_id": 4})
    unwrapped: Any = env.unwrapped
    for seed in range(3):
        _, info = env.reset(seed=seed)
        assert unwrapped.cur_task_id == 4
        assert info["goal"].shape == (64, 64, 3)
    env.close()
