"""Trials of the memory evaluation against the simulator that they came from."""

import mujoco
import numpy as np
import pytest

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation import return_trials
from sfvgen_planner.evaluation.measure import HELD_OUT_SEED
from sfvgen_planner.evaluation.return_trials import draw_trials
from sfvgen_planner.evaluation.tabletop import ENV_ID, locate_cube, project


def test_points_are_projected_to_where_the_renderer_draws_them():
    """The pads' segments in large pictures: flat, so that their middle is their centre."""
    env = make_env(ENV_ID, {"level": 1, "image_size": (480, 640)})
    tabletop = env.unwrapped
    renderer = mujoco.Renderer(tabletop.model, 480, 640)
    renderer.enable_segmentation_rendering()
    errors = []
    for seed in range(4):
        env.reset(seed=seed)
        renderer.update_scene(tabletop.data, "front")
        segments = renderer.render()[..., 0]
        for index, xy in enumerate(tabletop.plan.pads.values()):
            rows, columns = np.nonzero(segments == tabletop.model.geom(f"pad_{index}").id)
            middle = np.array([columns.mean(), rows.mean()]) + 0.5
            errors.append(np.linalg.norm(project(env, np.array([*xy, 0.001])) - middle))
    renderer.close()
    env.close()
    # Gripper and cube hide a part of some pads. One pixel here is an eighth of one of 64.
    assert np.median(errors) < 1


@pytest.mark.parametrize(("recall", "horizon"), [("first", 1), ("first", 3), ("previous", 2)])
def test_the_cube_left_its_place_the_horizon_ago(recall, horizon):
    trials = draw_trials(recall, horizon, 2, first_seed=0, num_future=16)
    assert trials[0].seed < trials[1].seed
    for trial in trials:
        env = make_env(ENV_ID, trial.env_kwargs)
        tabletop = env.unwrapped
        frames = [env.reset(seed=trial.seed)[0]["image"].copy()]
        places = [tabletop.cube_position(trial.cube)]
        for action, told in zip(trial.actions, trial.told, strict=True):
            assert told == tabletop.instruction.text
            observation, *_, info = env.step(action)
            frames.append(observation["image"].copy())
            places.append(tabletop.cube_position(trial.cube))
        assert np.array_equal(np.stack(frames), trial.past)
        assert info["instruction"] == trial.instruction
        assert tabletop.instruction.kind == recall
        away = np.linalg.norm(np.stack(places)[:, :2] - tabletop.target_xy, axis=-1)
        last_seen = np.flatnonzero(away < 0.005)[-1]
        since = len(trial.actions) - last_seen
        # The simulator's own distance; a cube is lifted before it moves aside.
        assert 8 * horizon - 3 <= since <= 8 * horizon + 7
        assert away[-1] > 0.05
        if recall == "first":
            assert np.allclose(tabletop.target_xy, places[0][:2], atol=1e-6)
        else:
            assert np.linalg.norm(tabletop.target_xy - places[0][:2]) > 0.05
        # Where the pictures showed it while it stood there, and where the expert takes it.
        stood = np.flatnonzero(away < 0.005)
        seen = np.median([locate_cube(trial.past[step], trial.cube) for step in stood], axis=0)
        assert np.linalg.norm(seen - trial.target_px) < 1.5
        assert np.linalg.norm(locate_cube(trial.future[-1], trial.cube) - trial.target_px) < 2
        assert trial.future.shape == (16, 64, 64, 3)
        env.close()


def test_other_cubes_can_move_before_the_asked_one():
    (trial,) = draw_trials("first", 2, 1, HELD_OUT_SEED, 16, num_moves_before=1)
    moved = [told.split(" cube")[0].split()[-1] for told in dict.fromkeys(trial.told)]
    assert len(moved) == 3
    assert moved.index(trial.cube) == 1
    with pytest.raises(SfvgenError, match="takes 9 moves, but the environment makes 8 at most"):
        draw_trials("first", 8, 1, HELD_OUT_SEED, 16, num_moves_before=3)
    with pytest.raises(SfvgenError, match="num_moves_before must be at least 0, got -1"):
        draw_trials("first", 8, 1, HELD_OUT_SEED, 16, num_moves_before=-1)


def test_the_same_trials_are_drawn_again():
    first, again = (draw_trials("first", 1, 2, first_seed=5, num_future=16) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one.seed == other.seed
        assert np.array_equal(one.past, other.past)


def test_what_cannot_be_drawn_is_told(monkeypatch):
    monkeypatch.setattr(return_trials, "_MOST_SEEDS_PER_TRIAL", 4)
    with pytest.raises(SfvgenError, match="horizon must be from 1 to 8"):
        draw_trials("first", 9, 1, 0, 16)
    with pytest.raises(SfvgenError, match="first, previous"):
        draw_trials("none", 1, 1, 0, 16)
    with pytest.raises(SfvgenError, match="only 0 of the episodes"):
        draw_trials("first", 1, 1, 0, num_future=1)
