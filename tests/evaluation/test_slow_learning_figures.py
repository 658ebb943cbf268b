"""The world model's figures on sizes of nothing, and their measures against known truths."""

import json
from itertools import pairwise

import numpy as np
import pytest
from sfvgen_policies import make_policy

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation import slow_learning
from sfvgen_planner.evaluation.measure import measure
from sfvgen_planner.evaluation.rollout import play
from sfvgen_planner.evaluation.slow_learning import (
    FIGURES,
    SKILL_EPISODES,
    SlowLearningConfig,
    measure_outcomes,
    moved_cube,
)
from sfvgen_planner.evaluation.statistics import (
    Estimate,
    expected_calibration_error,
    roc_auc,
)
from sfvgen_planner.evaluation.tabletop import ENV_ID, locate_cube, project


def test_every_figure_is_measured(tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(slow_learning, "MANY_STEPS", 3)
    monkeypatch.setattr(slow_learning, "SAMPLER_STEPS", (1, 3))
    config = SlowLearningConfig.of(str(tiny_checkpoint), "cpu", num_episodes=1)
    without_head = [name for name, part in FIGURES.items() if part is not measure_outcomes]
    measure(tmp_path / "a.json", config, FIGURES, without_head)
    rows = json.loads((tmp_path / "a.json").read_text())["figures"]
    assert {row["name"] for row in rows} == set(without_head)
    assert all(np.isfinite(row["value"]) for row in rows)
    assert all(row["seeds"] == [100_000] for row in rows if row.get("policy") == "expert")
    told = [row["actions"] for row in rows if row["name"] == "counterfactual_error_px"]
    assert told == ["expert", "random", "adversarial"]
    (steps,) = {row["many_steps"] for row in rows if row["name"] == "few_step_quality_ratio"}
    assert steps == 3
    sampled = [row for row in rows if row["name"] == "sampler_steps_psnr_db"]
    assert {row["num_inference_steps"] for row in sampled} == {1, 3}


def test_a_model_without_an_outcome_head_is_told(tmp_path, tiny_checkpoint):
    config = SlowLearningConfig.of(str(tiny_checkpoint), "cpu", num_episodes=1)
    with pytest.raises(SfvgenError, match="no outcome head"):
        measure(tmp_path / "a.json", config, FIGURES, ["success_head_auc"])


def test_cubes_are_found_where_the_simulator_puts_them():
    env = make_env(ENV_ID, {"level": 4, "recall": "none"})
    expert = make_policy("expert", env)
    errors = []
    for seed in range(2):
        observation, info = env.reset(seed=seed)
        expert.reset(seed)
        for _ in range(40):
            observation, *_, info = env.step(expert.act(observation, info["instruction"]))
            for colour in env.unwrapped.plan.cubes:
                place = project(env, env.unwrapped.cube_position(colour))
                errors.append(np.linalg.norm(locate_cube(observation["image"], colour) - place))
    env.close()
    # The gripper hides a part of the cube that it holds.
    assert np.isfinite(errors).all()
    assert np.mean(errors) < 0.75
    assert np.max(errors) < 2.5


def test_the_cube_that_moved_is_the_one_that_the_expert_was_told_to_move():
    env = make_env(ENV_ID, SKILL_EPISODES)
    right = []
    for episode in play(env, make_policy("expert", env), range(4)):
        texts = np.array(episode.instructions)
        cuts = [0, *(np.flatnonzero(texts[1:] != texts[:-1]) + 1), len(texts)]
        for start, end in pairwise(cuts):
            colour = moved_cube(episode.frames[start], episode.frames[end])
            right.append(f"the {colour} cube" in texts[start])
    env.close()
    assert len(right) == 12
    assert all(right)


def test_nothing_moved_where_nothing_changed():
    env = make_env(ENV_ID, SKILL_EPISODES)
    frame = env.reset(seed=0)[0]["image"]
    env.close()
    assert moved_cube(frame, frame) is None


def test_roc_auc_counts_the_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    labels = rng.random(60) < 0.4
    scores = rng.integers(0, 8, 60) + labels  # with ties
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in scores[labels]
        for low in scores[~labels]
    ]
    assert roc_auc(labels, scores) == pytest.approx(np.mean(wins))
    assert np.isnan(roc_auc(np.ones(3, bool), np.ones(3)))


def test_calibration_error_is_the_gap_between_sure_and_right():
    # 10 cases called 0.9 of which 6 are true, 10 called 0.1 of which 1 is: gaps of 0.3 and 0.
    probabilities = np.repeat([0.9, 0.1], 10)
    labels = np.array([True] * 6 + [False] * 4 + [True] + [False] * 9)
    assert expected_calibration_error(labels, probabilities) == pytest.approx(0.15)


def test_statistics_resample_whole_episodes():
    """Episodes that are alike leave no doubt, however many frames they have."""
    labels = [np.array([True, False, True])] * 5
    scores = [np.array([0.9, 0.5, 0.2])] * 5
    estimate = Estimate.of_statistic(roc_auc, labels, scores)
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.ci95 == pytest.approx((0.5, 0.5))
    with pytest.raises(SfvgenError, match="true and false"):
        Estimate.of_statistic(roc_auc, [np.array([True])], [np.array([0.3])])
