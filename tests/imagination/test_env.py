"""The single imagined world, under the checkers of Gymnasium and SB3."""

import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils.env_checker import check_env

import sfvgen_planner.imagination.env as env_module
from sfvgen_planner.data.environment import make_env
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import EnvStarts, WorldModelEnv
from sfvgen_planner.imagination.window import Window
from sfvgen_planner.world_model import tiny_world_model
from tests.point_mass import SIZE, PointMassEnv, PointMassWorldModel


class TinyWorld(WorldModelEnv):
    def __init__(self, render_mode=None):
        starts = EnvStarts(PointMassEnv(), image_size=64)
        super().__init__(tiny_world_model(action_size=2), starts, render_mode, num_samples=2)


class FakeWindow:
    shown: list[np.ndarray]

    def __init__(self, title, fps):
        self.shown, self.is_open = [], True

    def show(self, frame):
        self.shown.append(frame)

    def close(self):
        self.is_open = False


@pytest.fixture
def window(monkeypatch):
    monkeypatch.setattr(env_module, "Window", FakeWindow)


def test_passes_gymnasiums_checker_without_a_warning(window):
    gym.register("TinyWorld-v0", entry_point=TinyWorld)
    try:
        env = gym.make("TinyWorld-v0", render_mode="rgb_array", disable_env_checker=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(env.unwrapped)
    finally:
        del gym.registry["TinyWorld-v0"]


def test_passes_sb3s_checker_without_a_warning():
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(TinyWorld())


def test_the_window_shows_every_frame(window):
    env = WorldModelEnv(PointMassWorldModel(), EnvStarts(PointMassEnv()), "human")
    frames = [env.reset(seed=0)[0]]
    frames += [env.step(np.ones(2, np.float32))[0] for _ in range(3)]
    shown = env._window
    assert np.array_equal(shown.shown, frames)
    assert env.render() is None
    env.close()
    assert not shown.is_open
    env.close()


def test_a_window_needs_pygame(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(DependencyNotInstalled, match=r"pip install 'sfvgen-planner\[window\]'"):
        WorldModelEnv(PointMassWorldModel(), EnvStarts(PointMassEnv()), "human")


@pytest.fixture
def pygame(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    return pytest.importorskip("pygame")


def test_gymnasiums_checkers_say_nothing_of_a_window(pygame):
    gym.register("TinyWorld-v0", entry_point=TinyWorld)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            env = gym.make("TinyWorld-v0", render_mode="human")
            env.reset(seed=0)
            env.step(env.action_space.sample())
            assert env.render() is None
            env.close()
            assert not pygame.display.get_init()
            check_env(gym.make("TinyWorld-v0", render_mode="human").unwrapped)
    finally:
        del gym.registry["TinyWorld-v0"]


def test_the_window_shows_the_frame_also_where_another_was_closed(pygame):
    envs = [WorldModelEnv(PointMassWorldModel(), EnvStarts(PointMassEnv()), "human") for _ in "ab"]
    for env in envs:
        env.reset(seed=0)
    envs[0].close()
    frame = envs[1].step(np.ones(2, np.float32))[0]
    shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    times = 512 // SIZE
    assert np.array_equal(shown, frame.repeat(times, axis=0).repeat(times, axis=1))
    envs[1].close()
    assert not pygame.display.get_init()


def test_without_a_display_there_is_one_sentence(pygame, monkeypatch, caplog):
    monkeypatch.setenv("SDL_VIDEODRIVER", "no-such-driver")
    with pytest.raises(SfvgenError, match=r"can open no window here .*not available"):
        Window("Nothing", fps=10)


@pytest.mark.skipif(sys.platform != "linux", reason="another system has other drivers")
def test_without_a_display_it_is_told_and_mujoco_draws_on(pygame, monkeypatch, caplog):
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, "")  # So that it is put back.
        monkeypatch.delenv(name)
    env = make_env("sfvgen/TabletopReturn-v0", {"level": 1}, 1)
    env.reset(seed=0)
    before = env.render()
    Window("Nothing", fps=10).close()
    assert "finds no display" in caplog.text
    assert not pygame.display.get_init()
    assert np.array_equal(env.render(), before)
    env.close()
    again = make_env("sfvgen/TabletopReturn-v0", {"level": 1}, 1)
    again.reset(seed=0)
    assert np.array_equal(again.render(), before)
    again.close()


def test_rendering_gives_the_latest_frame():
    env = WorldModelEnv(PointMassWorldModel(), EnvStarts(PointMassEnv()), "rgb_array")
    env.reset(seed=0)
    observation = env.step(np.ones(2, np.float32))[0]
    assert observation.shape == (SIZE, SIZE, 3)
    assert np.array_equal(env.render(), observation)
    with pytest.raises(SfvgenError, match="render_mode"):
        WorldModelEnv(PointMassWorldModel(), EnvStarts(PointMassEnv()), "ansi")


def test_an_ended_episode_must_be_reset():
    env = WorldModelEnv(PointMassWorldModel(), EnvStarts(PointMassEnv()), horizon=2)
    with pytest.raises(SfvgenError, match="reset"):
        env.step(np.zeros(2, np.float32))
    env.reset(seed=0)
    action = np.zeros(2, np.float32)
    assert [env.step(action)[3] for _ in range(2)] == [False, True]
    with pytest.raises(SfvgenError, match="ended"):
        env.step(action)
    env.reset()
    assert not env.step(action)[3]


@pytest.mark.parametrize("action", [np.zeros(3), np.array([0, np.nan])], ids=["shape", "nan"])
def test_an_action_that_is_none_is_refused_as_one_env_s(action):
    env = WorldModelEnv(PointMassWorldModel(), EnvStarts(PointMassEnv()))
    env.reset(seed=0)
    with pytest.raises(SfvgenError, match=r"^an action must be \(2,\) finite numbers, got array"):
        env.step(action)


def test_it_is_shown_as_fast_as_what_it_imagines():
    model = PointMassWorldModel()
    assert WorldModelEnv(model, EnvStarts(PointMassEnv())).metadata["render_fps"] == 5
    model.config.frame_skip = 2
    assert WorldModelEnv(model, EnvStarts(PointMassEnv())).metadata["render_fps"] == 2
    assert WorldModelEnv.metadata["render_fps"] == 10


def test_unknown_options_are_refused():
    env = WorldModelEnv(PointMassWorldModel(), EnvStarts(PointMassEnv()))
    env.reset(options={})
    with pytest.raises(SfvgenError, match=r"know no options of reset, got {'nonsense': 1}"):
        env.reset(options={"nonsense": 1})
