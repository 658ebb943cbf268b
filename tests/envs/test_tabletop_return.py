"""The tabletop against closed forms, the simulator itself and other libraries' checkers."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sfvgen_envs
from gymnasium.utils.env_checker import check_env
from sfvgen_envs.tabletop_instructions import PLACE_HALF_EXTENT
from sfvgen_envs.tabletop_return import (
    CLEAR_HEIGHT,
    CONTROL_TIMESTEP,
    MAX_SPEED,
    SUCCESS_DISTANCE,
    TabletopReturnEnv,
)
from sfvgen_envs.tabletop_scene import CUBE_COLOURS, CUBE_HALF_EDGE
from sfvgen_policies import make_policy

import mujoco  # isort: skip (after sfvgen_envs, which chooses the GL backend)

MakeEnv = Callable[..., TabletopReturnEnv]


@pytest.fixture
def make() -> Iterator[MakeEnv]:
    """Make environments with small pictures, and close them."""
    envs: list[TabletopReturnEnv] = []

    def build(**kwargs: Any) -> TabletopReturnEnv:
        envs.append(TabletopReturnEnv(**{"image_size": 16, **kwargs}))
        return envs[-1]

    yield build
    for env in envs:
        env.close()


def random_actions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 4)).astype(np.float32)


def run_expert(
    env: TabletopReturnEnv, seed: int, until: Callable[[dict[str, Any]], bool] = lambda info: False
) -> dict[str, Any]:
    """Let the expert act until the end of the episode, or until a condition on info holds."""
    policy = make_policy("expert", env)
    observation, info = env.reset(seed=seed)
    policy.reset(seed)
    terminated = False
    while not terminated and not until(info):
        action = policy.act(observation, info["instruction"])
        observation, _, terminated, _, info = env.step(action)
    return info


def project(env: TabletopReturnEnv, points: np.ndarray, size: int) -> np.ndarray:
    """Pinhole projection of world points (N, 3) to (row, column) of a square picture."""
    camera = env.data.camera("front")
    local = (points - camera.xpos) @ camera.xmat.reshape(3, 3)
    focal = size / 2 / np.tan(np.deg2rad(env.model.camera("front").fovy[0]) / 2)
    column = size / 2 + focal * local[:, 0] / -local[:, 2]
    row = size / 2 - focal * local[:, 1] / -local[:, 2]
    return np.stack([row, column], axis=1)


# --- Gymnasium's side -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {"level": 4},
        {"level": 2, "recall": "previous", "image_size": (48, 80)},
        {"level": 1, "recall": "none", "render_size": 96},
    ],
)
def test_checkers_of_gymnasium_and_sb3_find_nothing(kwargs: dict[str, Any]) -> None:
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    env = gym.make("sfvgen/TabletopReturn-v0", **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
        if env.observation_space["image"].shape[0] >= 36:
            sb3_check_env(env.unwrapped)
    env.close()


def test_id_is_found_with_and_without_import_and_exit_is_silent() -> None:
    program = (
        "import gymnasium as gym\n"
        "env = gym.make('sfvgen_envs:sfvgen/TabletopReturn-v0')\n"
        "print(env.reset(seed=0)[0]['image'].shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(64, 64, 3)"
    assert done.stderr == ""  # an unclosed renderer would complain here
    sfvgen_envs.register_envs()  # once more is harmless
    assert "sfvgen/TabletopReturn-v0" in gym.registry


def _render_in_a_worker(kwargs: dict[str, Any], queue: Any) -> None:
    env = TabletopReturnEnv(**kwargs)
    try:
        queue.put(env.reset(seed=0)[0]["image"])
    except RuntimeError as error:
        queue.put(str(error))
    env.close()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_worker_processes_render_or_say_why_not(make: MakeEnv, method: str) -> None:
    image = make().reset(seed=0)[0]["image"]
    context: Any = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    worker = context.Process(target=_render_in_a_worker, args=({"image_size": 16}, queue))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        worker.start()
    answer = queue.get()
    worker.join()
    if method == "spawn":
        np.testing.assert_array_equal(answer, image)
    else:
        assert "'spawn' or 'forkserver'" in answer


def test_same_seed_and_actions_give_the_same_pictures_and_states(make: MakeEnv) -> None:
    def roll(env: TabletopReturnEnv) -> tuple[list[np.ndarray], np.ndarray, list[float]]:
        images, rewards = [env.reset(seed=3)[0]["image"]], []
        for action in random_actions(40):
            observation, reward, *_ = env.step(action)
            images.append(observation["image"])
            rewards.append(float(reward))
        return images, env.get_state().physics, rewards

    used = make(level=4, image_size=64)
    used.reset(seed=9)
    for action in random_actions(5, seed=1):
        used.step(action)
    first, second = roll(make(level=4, image_size=64)), roll(used)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert first[2] == second[2]
    assert not np.array_equal(first[0][0], used.reset(seed=4)[0]["image"])


def test_render_quality_changes_the_picture_and_not_the_physics(make: MakeEnv) -> None:
    fast, pretty = make(level=2), make(level=2, render_quality="pretty")
    images = [env.reset(seed=5)[0]["image"] for env in (fast, pretty)]
    assert not np.array_equal(*images)
    for action in random_actions(10):
        for env in (fast, pretty):
            env.step(action)
    np.testing.assert_array_equal(fast.get_state().physics, pretty.get_state().physics)


def test_render_has_the_size_asked_for(make: MakeEnv) -> None:
    env = make(image_size=32, render_size=(40, 56))
    observation, _ = env.reset(seed=0)
    picture = env.render()
    assert observation["image"].shape == (32, 32, 3)
    assert picture is not None
    assert picture.shape == (40, 56, 3)
    same = make(image_size=24)
    np.testing.assert_array_equal(same.reset(seed=0)[0]["image"], same.render())


# --- the picture ----------------------------------------------------------------------------


def test_cubes_are_seen_where_a_pinhole_camera_sees_them(make: MakeEnv) -> None:
    env = make(level=4, image_size=256)
    for seed in range(5):
        env.reset(seed=seed)
        for _ in range(2):  # the gripper leaves to the back and up
            observation = env.step(np.array([0, 1, 1, 0], np.float32))[0]
        image = observation["image"].astype(float) / 255
        for colour, rgb in CUBE_COLOURS.items():
            hue = np.array(rgb) / np.linalg.norm(rgb)
            norm = np.linalg.norm(image, axis=-1)
            alike = (image @ hue / np.maximum(norm, 1e-6) > 0.985) & (norm > 0.4)
            rows, columns = np.nonzero(alike)
            seen = np.array([np.median(rows), np.median(columns)]) + 0.5
            expected = project(env, env.cube_position(colour)[None], 256)[0]
            assert np.linalg.norm(seen - expected) < 4, (seed, colour)


def test_everything_in_use_is_in_the_picture(make: MakeEnv) -> None:
    env = make()
    env.reset(seed=0)
    limits = np.abs(env.model.jnt_range[:3]).max(axis=1)
    palm = np.array([[-0.047, 0, 0.055], [0.047, 0, 0.055], [0, 0, 0]])
    places = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (0, 1)])
    everywhere = places * limits  # the grasp point at its limits, the whole palm over any place
    above_places = (places * [*PLACE_HALF_EXTENT, 0.13])[:, None] + palm
    pixels = project(env, np.concatenate([everywhere, above_places.reshape(-1, 3)]), 64)
    assert pixels.min() >= 0
    assert pixels.max() <= 64


def test_one_pixel_is_about_a_centimetre(make: MakeEnv) -> None:
    env = make()
    env.reset(seed=0)
    left, right = project(env, np.array([[-0.1, 0, 0], [0.1, 0, 0]]), 64)
    assert 0.009 < 0.2 / (right - left)[1] < 0.010


# --- the physics ----------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("fraction", [0.5, -0.25])
def test_actions_are_velocities(make: MakeEnv, axis: int, fraction: float) -> None:
    env = make()
    env.reset(seed=0)
    state = env.get_state()
    middle = np.array([0.0, 0.0, 0.10, 0.037, 0.037])
    env.data.qpos[:5] = env.data.act[:] = middle
    action = np.zeros(4, np.float32)
    action[axis] = fraction
    env.step(action)
    env.step(np.zeros(4, np.float32))  # the servos catch up
    expected = middle[:3].copy()
    expected[axis] += fraction * MAX_SPEED * CONTROL_TIMESTEP
    np.testing.assert_allclose(env.gripper_position, expected, atol=1e-3)
    env.set_state(state)


def test_gripper_stops_at_the_edge(make: MakeEnv) -> None:
    env = make()
    env.reset(seed=0)
    for _ in range(8):
        env.step(np.array([1, -1, 1, -1], np.float32))
    np.testing.assert_allclose(env.gripper_position, [0.22, -0.18, 0.17], atol=1e-3)
    assert env.gripper_opening < 0.02


def test_a_cube_presses_on_the_table_with_its_weight(make: MakeEnv) -> None:
    env = make(level=1)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(4, np.float32))
    force, total = np.zeros(6), 0.0
    for index in range(env.data.ncon):
        mujoco.mj_contactForce(env.model, env.data, index, force)
        total += force[0]
    assert total == pytest.approx(0.05 * 9.81, rel=1e-3)


def test_grasping_is_friction_alone(make: MakeEnv) -> None:
    env = make(level=1, recall="none")
    assert env.model.neq == 0  # nothing can be welded
    run_expert(env, 1, until=lambda info: env.gripper_position[2] > 0.1 and held(env))
    colour = env.instruction.cube
    offset = env.cube_position(colour) - env.gripper_position
    assert env.cube_position(colour)[2] > 0.08
    for x in (1, 1, -1, -1):
        env.step(np.array([x, 0, 0, -1], np.float32))
    slip = env.cube_position(colour) - env.gripper_position - offset
    assert np.linalg.norm(slip) < 0.003
    env.step(np.array([0, 0, 0, 1], np.float32))
    env.step(np.array([0, 0, 0, 1], np.float32))
    assert env.cube_position(colour)[2] == pytest.approx(CUBE_HALF_EDGE, abs=0.01)


def held(env: TabletopReturnEnv) -> bool:
    return env.is_grasped(env.instruction.cube)


def test_wild_actions_never_lose_a_cube(make: MakeEnv) -> None:
    env = make(level=4, steps_per_instruction=1000)
    policy = make_policy("random", env, std=1.5)
    for seed in range(3):
        env.reset(seed=seed)
        policy.reset(seed)
        for _ in range(300):
            env.step(policy.act(None, ""))
        for colour in env.plan.cubes:
            x, y, z = env.cube_position(colour)
            assert abs(x) < 0.24
            assert abs(y) < 0.20
            assert 0 < z < 0.25


# --- the task -------------------------------------------------------------------------------


def test_reward_is_progress_plus_success(make: MakeEnv) -> None:
    env = make(level=1, recall="none")
    policy = make_policy("expert", env)
    env.reset(seed=2)
    pad = env.plan.pads[env.instruction.place]
    cube = env.instruction.cube

    def distance() -> float:
        return float(np.linalg.norm(env.cube_position(cube)[:2] - pad))

    start, rewards, terminated = distance(), [], False
    while not terminated:
        before = distance()
        _, reward, terminated, truncated, info = env.step(policy.act(None, ""))
        rewards.append(float(reward))
        assert rewards[-1] == pytest.approx(10 * (before - distance()) + terminated)
        assert info["distance_m"] == pytest.approx(distance())
        assert not truncated
    assert sum(rewards) == pytest.approx(10 * (start - distance()) + 1)


def test_an_instruction_is_achieved_when_placed_released_and_raised(make: MakeEnv) -> None:
    env = make(level=1, recall="first")
    info = run_expert(env, 0, until=lambda info: info["instruction_index"] == 1)
    (result,) = info["instruction_results"]
    assert info["success"]
    assert result["success"]
    assert result["distance_m"] == pytest.approx(info["distance_m"])
    assert env.gripper_position[2] >= CLEAR_HEIGHT
    assert not env.is_grasped(result["cube"])
    stands = env.cube_position(result["cube"])
    assert np.linalg.norm(stands[:2] - result["target_xy"]) < SUCCESS_DISTANCE
    moved = np.linalg.norm(stands[:2] - env.plan.cubes[result["cube"]])
    assert info["distance_to_first_m"][result["cube"]] == pytest.approx(moved)
    assert info["instruction"] == f"return the {result['cube']} cube"
    assert not info["is_success"]


def test_idle_policy_spends_its_budgets_and_fails(make: MakeEnv) -> None:
    env = make(level=2, recall="first", steps_per_instruction=3)
    env.reset(seed=0)
    infos, terminated = [], False
    while not terminated:
        _, reward, terminated, _, info = env.step(np.zeros(4, np.float32))
        assert reward == pytest.approx(float(terminated), abs=1e-3)
        infos.append(info)
    assert [info["instruction_index"] for info in infos] == [0, 0, 1, 1, 1, 2, 2]
    results = infos[-1]["instruction_results"]
    # The recalled cube never left, so only the whole episode can say that nothing was done.
    assert [result["success"] for result in results] == [False, False, True]
    assert not infos[-1]["is_success"]
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.zeros(4, np.float32))


def test_previous_is_where_the_cube_really_stood(make: MakeEnv) -> None:
    env = make(level=3, recall="previous")
    policy = make_policy("expert", env)
    for seed in range(3):
        _, info = env.reset(seed=seed)
        policy.reset(seed)
        stood: dict[str, list[np.ndarray]] = {c: [xy] for c, xy in env.plan.cubes.items()}
        last = info["instruction_index"]
        moving, terminated = env.instruction.cube, False
        while not terminated:
            *_, terminated, _, info = env.step(policy.act(None, ""))
            if info["instruction_index"] != last:
                stood[moving].append(env.cube_position(moving)[:2])
                last, moving = info["instruction_index"], env.instruction.cube
        target = info["instruction_results"][-1]["target_xy"]
        assert info["instruction"] == f"put the {moving} cube back where it was before"
        assert len(stood[moving]) == 3
        np.testing.assert_allclose(target, stood[moving][1], atol=2e-3)
        first, previous, present = stood[moving]
        pairs = ((first, previous), (first, present), (previous, present))
        assert min(np.linalg.norm(a - b) for a, b in pairs) > 0.10 - 2 * SUCCESS_DISTANCE
        assert info["is_success"]


# --- state ----------------------------------------------------------------------------------


def test_state_continues_bit_for_bit_here_and_elsewhere(make: MakeEnv) -> None:
    env, other = make(level=4, image_size=64), make(level=4, image_size=64)
    run_expert(env, 7, until=lambda info: info["instruction_index"] == 1 and held(env))
    state = env.get_state()

    def roll(env: TabletopReturnEnv) -> tuple[list[np.ndarray], list[Any], np.ndarray]:
        steps = [env.step(action) for action in random_actions(40)]
        images = [observation["image"] for observation, *_ in steps]
        facts = [(reward, terminated, info) for _, reward, terminated, _, info in steps]
        return images, facts, env.get_state().physics

    expected = roll(env)
    expected_next = env.reset()[0]["image"]  # the random generator is part of the state
    other.reset(seed=1)
    for one in (env, other):
        one.set_state(state)
        images, facts, physics = roll(one)
        np.testing.assert_array_equal(images, expected[0])
        assert facts == expected[1]
        np.testing.assert_array_equal(physics, expected[2])
        np.testing.assert_array_equal(one.reset()[0]["image"], expected_next)


@pytest.mark.parametrize("how", ["copied", "pickled"])
def test_a_copied_environment_goes_on_bit_for_bit(make: MakeEnv, how: str) -> None:
    env = make(level=2, render_size=48)
    run_expert(env, 7, until=lambda info: held(env))
    env.render()
    other = copy.deepcopy(env) if how == "copied" else pickle.loads(pickle.dumps(env))
    for action in random_actions(10):
        (expected, *facts), (observation, *told) = env.step(action), other.step(action)
        np.testing.assert_array_equal(observation["image"], expected["image"])
        assert told == facts
    np.testing.assert_array_equal(other.render(), env.render())
    np.testing.assert_array_equal(other.reset()[0]["image"], env.reset()[0]["image"])
    other.close()


def test_to_advance_is_to_step_without_a_picture(make: MakeEnv, monkeypatch: Any) -> None:
    env, other = make(level=2), make(level=2)
    for one in (env, other):
        one.reset(seed=3)
    monkeypatch.setattr(other, "_observation", None)  # cannot be called
    for action in random_actions(40):
        _, *expected = env.step(action)
        assert other.advance(action) == tuple(expected)
    np.testing.assert_array_equal(env.get_state().physics, other.get_state().physics)


def test_a_state_does_not_change_with_the_environment_it_came_from(make: MakeEnv) -> None:
    env = make(level=2, steps_per_instruction=2)
    env.reset(seed=0)
    state = env.get_state()
    before = state.physics.copy(), state.episode.index, len(state.episode.results)
    for _ in range(4):
        env.step(np.ones(4, np.float32))
    assert (state.episode.index, len(state.episode.results)) == before[1:]
    np.testing.assert_array_equal(state.physics, before[0])


def test_a_foreign_state_is_refused(make: MakeEnv) -> None:
    env, other = make(level=1), make(level=2)
    env.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(ValueError, match="same num_cubes"):
        other.set_state(env.get_state())


# --- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"level": 7}, "level=7 is out of range; use 1 to 4"),
        ({"level": 0}, "level=0 is out of range"),
        ({"level": 1.5}, r"level=1\.5 is not a whole number"),
        ({"level": True}, "level=True is not a whole number"),
        ({"recall": "x"}, "recall='x' is unknown; choose from 'none', 'first', 'previous'"),
        ({"num_cubes": 5}, "num_cubes=5 is out of range; use 1 to 4"),
        ({"num_moves": 0}, "num_moves=0 is out of range; use 1 to 8"),
        ({"recall": "previous", "num_moves": 1}, "num_moves=2 or more"),
        ({"level": 3, "num_moves_before": 3}, "num_moves_before must be from 0 to 2 with"),
        ({"level": 3, "num_moves_before": -1}, "num_moves_before must be from 0 to 2 with"),
        ({"level": 3, "num_moves_before": 1.5}, r"num_moves_before=1\.5 is not a whole number"),
        ({"num_cubes": 1, "num_moves": 3, "num_moves_before": 1}, "must be from 0 to 0 with"),
        ({"level": 3, "recall": "none", "num_moves_before": 1}, "must be from 0 to 0 with"),
        ({"steps_per_instruction": 0}, "steps_per_instruction=0 is out of range"),
        ({"image_size": 0}, "image_size=0 is out of range; use 16 to 2048"),
        ({"image_size": (64, 64, 3)}, "one number or \\(height, width\\)"),
        ({"image_size": "64"}, "image_size='64' is not a whole number"),
        ({"render_size": 4096}, "render_size=4096 is out of range"),
        ({"render_quality": "ugly"}, "render_quality='ugly' is unknown"),
        ({"render_mode": "human"}, "render_mode='human' is unknown"),
    ],
)
def test_bad_arguments_end_in_one_sentence(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TabletopReturnEnv(**kwargs)


def test_a_window_shows_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("DISPLAY", ":0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("sfvgen/TabletopReturn-v0", render_mode="human", image_size=16)
    env.reset(seed=0)
    observation = env.step(random_actions(1)[0])[0]
    shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    assert env.render_mode == "human"
    assert np.array_equal(shown, observation["image"])
    env.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such variables")
def test_without_a_display_a_window_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"finds no display .*; use render_mode='rgb_array', or"):
        gym.make("sfvgen/TabletopReturn-v0", render_mode="human")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.array([0, 0, 0, np.nan]), "must be finite and within"),
        (np.array([0, 0, np.inf, 0]), "must be finite and within"),
        (np.array([0, 1.01, 0, 0]), "must be finite and within"),
        (np.zeros(3), r"shape \(3,\); it must have shape \(4,\)"),
        (np.zeros((1, 4)), r"shape \(1, 4\)"),
        ("left", "no array of 4 numbers"),
    ],
)
def test_bad_actions_change_nothing(make: MakeEnv, action: Any, message: str) -> None:
    env = make()
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(ValueError, match=message):
        env.step(action)
    np.testing.assert_array_equal(env.get_state().physics, before.physics)


def test_nothing_works_before_reset(make: MakeEnv) -> None:
    env = make()
    for call in (lambda: env.step(np.zeros(4)), env.render, env.get_state):
        with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
            call()


def test_an_absent_cube_is_named(make: MakeEnv) -> None:
    env = make(level=1)
    env.reset(seed=0)
    (present,) = env.plan.cubes
    with pytest.raises(ValueError, match=f"no pink cube in this episode; its cubes are {present}"):
        env.cube_position("pink")
