import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sfvgen_planner.data import FrameSkip, camera_frame, make_env, proprioception
from sfvgen_planner.data.environment import register_installed_envs
from sfvgen_planner.errors import SfvgenError
from tests.data.counting_env import COUNTING, CountingEnv, expected_frame

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


@pytest.fixture
def env() -> CountingEnv:
    env = CountingEnv(render_mode="rgb_array")
    env.reset(seed=3)
    return env


def test_dict_entry_comes_first(env: CountingEnv) -> None:
    np.testing.assert_array_equal(camera_frame(env, {"image": PICTURE, "proprio": 1}), PICTURE)


def test_then_a_picture_observation(env: CountingEnv) -> None:
    np.testing.assert_array_equal(camera_frame(env, PICTURE), PICTURE)


def test_then_render(env: CountingEnv) -> None:
    frame = camera_frame(env, np.zeros(2))
    np.testing.assert_array_equal(frame, expected_frame(3, 0, np.zeros(2)))


def test_resizing_averages(env: CountingEnv) -> None:
    small = camera_frame(env, PICTURE, (2, 3))
    blocks = PICTURE.reshape(2, 2, 3, 2, 3).astype(float).mean(axis=(1, 3))
    assert small.shape == (2, 3, 3)
    assert np.abs(small - blocks).max() <= 1


@pytest.mark.parametrize("image", [PICTURE / 255, PICTURE[..., :1], np.stack([PICTURE] * 3)])
def test_what_is_called_image_but_is_no_picture(env: CountingEnv, image: np.ndarray) -> None:
    frame = camera_frame(env, {"image": image})
    np.testing.assert_array_equal(frame, expected_frame(3, 0, np.zeros(2)))
    blind = CountingEnv(render_mode=None)
    blind.reset(seed=3)
    with pytest.raises(SfvgenError, match=r"its observation is none and render\(\) gives nothing"):
        camera_frame(blind, {"image": image})


def test_environment_without_a_camera() -> None:
    env = CountingEnv(render_mode=None)
    env.reset(seed=0)
    with pytest.raises(SfvgenError, match=r"render\(\) gives nothing"):
        camera_frame(env, np.zeros(2))


def test_environment_that_cannot_render() -> None:
    class Blind(gym.Env[np.ndarray, np.ndarray]):
        """Has no `render`."""

    with pytest.raises(SfvgenError, match=r"Blind.* shows no camera picture.*no render\(\)"):
        camera_frame(Blind(), np.zeros(2))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such variables")
def test_a_window_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SfvgenError, match="no display; use render_mode='rgb_array', or"):
        make_env("Reacher-v5", {"render_mode": "human"})


def test_proprioception() -> None:
    vector = np.array([1.0, 2.0])
    for observation in (vector, {"image": PICTURE, "proprio": vector}, {"observation": vector}):
        sensed = proprioception(observation)
        assert sensed is not None
        assert sensed.dtype == np.float32
        np.testing.assert_array_equal(sensed, vector)
    assert proprioception(PICTURE) is None
    assert proprioception({"image": PICTURE}) is None


def test_frame_skip_equals_stepping_by_hand() -> None:
    held = FrameSkip(gym.make("Reacher-v5"), 3)
    plain = gym.make("Reacher-v5")
    held.reset(seed=0)
    plain.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(5):
        action = rng.uniform(-1, 1, 2)
        observation, reward, *_ = held.step(action)
        rewards = []
        for _ in range(3):
            expected, one, *_ = plain.step(action)
            rewards.append(one)
        np.testing.assert_array_equal(observation, expected)
        assert reward == pytest.approx(sum(rewards))
    held.close()
    plain.close()


def test_frame_skip_stops_at_the_end() -> None:
    env = FrameSkip(CountingEnv(), 4)
    env.reset(seed=0)
    env.step(np.zeros(2))
    observation, reward, terminated, _, _ = env.step(np.zeros(2))
    assert terminated
    np.testing.assert_array_equal(observation, [0, 5])
    assert reward == 5


# The checker advises against wrappers, and against the unbounded observations of Reacher.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_frame_skip_passes_gymnasiums_checker() -> None:
    env = FrameSkip(gym.make("Reacher-v5"), 2)
    check_env(env, skip_render_check=True)
    env.close()


def test_frame_skip_below_one() -> None:
    with pytest.raises(SfvgenError, match="at least 1"):
        FrameSkip(CountingEnv(), 0)


def test_spec_of_a_frame_skip_makes_it_again() -> None:
    env = make_env(COUNTING, {"size": 5}, frame_skip=2)
    assert env.spec is not None
    again = gym.make(env.spec)
    assert isinstance(again, FrameSkip)
    assert again.num_steps == 2
    assert again.unwrapped.size == 5  # type: ignore[attr-defined]


def test_installed_environments_are_found_without_an_import() -> None:
    register_installed_envs()
    assert "sfvgen/TabletopReturn-v0" in gym.registry
