"""Measures against values computed by other means."""

import numpy as np
import pytest

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.data.episode import Episode
from sfvgen_planner.evaluation.chunks import Chunks, place_error_px
from sfvgen_planner.evaluation.metrics import MAX_PSNR_DB, psnr_db
from sfvgen_planner.evaluation.tabletop import ENV_ID, locate_gripper, project


def test_psnr_has_its_closed_form():
    reference = np.zeros((2, 3, 8, 8, 3), np.uint8)
    frames = reference.copy()
    frames[0] += 10
    # 20 log10(255 / 10), and identical videos at the cap.
    assert psnr_db(frames, reference) == pytest.approx([20 * np.log10(25.5), MAX_PSNR_DB])


def test_the_gripper_is_found_where_the_simulator_puts_it():
    env = make_env(ENV_ID, {"level": 4})
    errors = []
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        action = np.zeros(4)
        rng = np.random.default_rng(seed)
        for _ in range(20):
            action = np.clip(0.8 * action + rng.normal(0, 0.5, 4), -1, 1)
            observation = env.step(action.astype(np.float32))[0]
            place = project(env, env.unwrapped.data.geom("palm").xpos)
            if 7 < place[0] < 57:  # nearer to the edge the picture cuts the palm off
                errors.append(np.linalg.norm(locate_gripper(observation["image"]) - place))
    env.close()
    assert len(errors) > 40
    assert np.mean(errors) < 0.5
    assert np.max(errors) < 1.0


def test_a_picture_without_a_gripper_counts_as_a_whole_width():
    blank = np.full((2, 64, 64, 3), 200, np.uint8)
    assert np.isnan(locate_gripper(blank)).all()
    assert place_error_px(locate_gripper(blank), np.zeros((2, 2)), width=64).tolist() == [64, 64]


def test_place_errors_are_distances_where_both_places_are_known():
    nowhere = [np.nan, np.nan]
    imagined = np.array([[3.0, 4.0], nowhere, [1.0, 1.0]])
    real = np.array([[0.0, 0.0], [1.0, 1.0], nowhere])
    errors = place_error_px(imagined, real, width=64)
    assert errors[:2].tolist() == [5.0, 64.0]
    assert np.isnan(errors[2])


def numbered_episode(num_steps, seed):
    """Frame k shows k, action k is k."""
    steps = np.arange(num_steps + 1, dtype=np.uint8)
    return Episode(
        frames=np.broadcast_to(steps[:, None, None, None], (num_steps + 1, 2, 2, 3)),
        actions=np.arange(num_steps, dtype=np.float32)[:, None],
        instructions=[""] * num_steps,
        rewards=np.zeros(num_steps, np.float32),
        terminated=True,
        truncated=False,
        seed=seed,
    )


def test_chunks_hold_the_actions_that_lead_to_their_frames():
    chunks = Chunks.cut(
        [numbered_episode(20, 0), numbered_episode(5, 1), numbered_episode(11, 2)], 4, 8
    )
    assert chunks.episode.tolist() == [0, 0, 2]
    assert chunks.past[:, :, 0, 0, 0].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11], [0, 1, 2, 3]]
    assert chunks.future[1, :, 0, 0, 0].tolist() == list(range(12, 20))
    # Action k leads from frame k to frame k + 1.
    assert chunks.actions[1, :, 0].tolist() == list(range(11, 19))
    means = chunks.episode_means(np.array([1.0, 3.0, 5.0]))
    assert means[[0, 2]].tolist() == [2.0, 5.0]
    assert np.isnan(means[1])


def test_shuffled_chunks_come_from_other_episodes():
    episodes = [numbered_episode(steps, seed) for seed, steps in enumerate((20, 5, 20, 11))]
    chunks = Chunks.cut(episodes, 4, 8)
    others = chunks.shuffled()
    assert sorted(others) == list(range(5))
    assert (chunks.episode[others] != chunks.episode).all()
