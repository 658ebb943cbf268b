"""Imagined worlds side by side, held against Gymnasium's own vectorisation of single ones."""

import math

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import EnvStarts, Start, WorldModelEnv, WorldModelVectorEnv
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from tests.point_mass import (
    SPEED,
    PointMassEnv,
    PointMassOutcomeHead,
    PointMassWorldModel,
    draw,
    locate,
)


def midway(rng):
    """From one to six past frames, of a blob that has been at rest."""
    position = rng.uniform(0.4, 0.6, 2)
    return Start(np.stack([draw(position)] * int(rng.integers(1, 7))), "right")


def at_centre(rng):
    return Start(draw(np.array([[0.4, 0.5]])), "right")


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def point_mass(num_envs, starts=midway, noise=0.03, **kwargs):
    return WorldModelVectorEnv(PointMassWorldModel(noise), starts, num_envs, **kwargs)


def same_infos(found, expected):
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        if isinstance(values, dict):
            same_infos(found[key], values)
        elif key == "final_obs":
            for a, b in zip(found[key], values, strict=True):
                assert (a is None) == (b is None)
                assert a is None or np.array_equal(a, b)
        elif values.dtype == object or values.dtype == bool:
            assert found[key].tolist() == values.tolist()
        else:
            assert found[key].dtype == values.dtype
            np.testing.assert_allclose(found[key], values, atol=1e-5)


@pytest.mark.parametrize("max_disagreement", [None, 0.04])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_behaves_as_gymnasiums_vector_of_single_envs(mode, max_disagreement):
    options = {
        "horizon": 5,
        "outcome_head": PointMassOutcomeHead(),
        "success_threshold": sigmoid(0.6),
        "num_samples": 2,
        "max_disagreement": max_disagreement,
    }
    envs = point_mass(4, autoreset_mode=mode, **options)
    model = PointMassWorldModel(0.03)
    single = [lambda: WorldModelEnv(model, midway, **options)] * 4
    reference = SyncVectorEnv(single, autoreset_mode=mode)
    assert envs.metadata["autoreset_mode"] == reference.metadata["autoreset_mode"]
    assert envs.observation_space == reference.observation_space
    assert envs.action_space == reference.action_space
    assert envs.single_action_space == reference.single_action_space
    rng = np.random.default_rng(0)
    kinds = set()
    for seed in (7, [3, 5, 3, 9], None):
        found, expected = envs.reset(seed=seed), reference.reset(seed=seed)
        assert np.array_equal(found[0], expected[0])
        same_infos(found[1], expected[1])
        for _ in range(12):
            actions = rng.uniform(-0.2, 1, (4, 2)).astype(np.float32)
            found, expected = envs.step(actions), reference.step(actions)
            assert np.array_equal(found[0], expected[0])
            np.testing.assert_allclose(found[1], expected[1], atol=1e-6)
            assert np.array_equal(found[2], expected[2])
            assert np.array_equal(found[3], expected[3])
            same_infos(found[4], expected[4])
            assert found[0] in envs.observation_space
            kinds.update(zip(found[2].tolist(), found[3].tolist(), strict=True))
            ended = found[2] | found[3]
            if mode is AutoresetMode.DISABLED and ended.any():
                with pytest.raises(SfvgenError, match="ended"):
                    envs.step(actions)
                found, expected = (
                    e.reset(options={"reset_mask": ended.copy()}) for e in (envs, reference)
                )
                assert np.array_equal(found[0], expected[0])
                same_infos(found[1], expected[1])
    assert kinds >= {(False, False), (True, False), (False, True)}


def test_one_of_many_is_as_one_alone_with_the_real_model():
    model = tiny_world_model(action_size=2)
    frames = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), np.uint8)

    def starts(rng):
        return Start(frames[: rng.integers(1, 7)], "put the red cube on the blue pad")

    torch.manual_seed(0)
    sizes = {"latent_channels": 4, "latent_side": 4, "hidden_size": 8}
    head = OutcomeHead(**sizes, vocab_size=len(model.tokenizer))
    options = {"outcome_head": head, "num_samples": 2}
    many = WorldModelVectorEnv(model, starts, 3, **options)
    many.reset(seed=4)
    alone = WorldModelEnv(model, starts, **options)
    alone.reset(seed=6)
    actions = np.random.default_rng(1).uniform(-1, 1, (4, 3, 2)).astype(np.float32)
    for action in actions:
        observations, rewards, _, _, infos = many.step(action)
        observation, reward, _, _, info = alone.step(action[2])
        assert np.abs(observations[2].astype(int) - observation).max() <= 1
        assert rewards[2] == pytest.approx(reward, abs=1e-5)
        assert infos["disagreement"][2] == pytest.approx(info["disagreement"], abs=1e-4)
        assert infos["success_probability"][2] == pytest.approx(
            info["success_probability"], abs=1e-5
        )


def test_imagined_worlds_follow_the_actions_and_the_start():
    envs = point_mass(3, noise=0)
    start = locate(envs.reset(seed=0)[0])
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (6, 3, 2)).astype(np.float32)
    for action in actions:
        observations = envs.step(action)[0]
    assert np.abs(locate(observations) - start - SPEED * actions.sum(axis=0)).max() < 0.02


def test_a_step_is_one_call_of_the_model():
    envs = point_mass(8, at_centre)
    envs.reset(seed=0)
    for _ in range(6):
        envs.step(np.zeros((8, 2), np.float32))
    assert envs.world_model.batch_sizes == [8] * 6


def test_success_ends_an_episode_on_the_second_frame_in_a_row():
    envs = point_mass(
        2,
        at_centre,
        noise=0,
        outcome_head=PointMassOutcomeHead(),
        success_threshold=sigmoid(0.575),
        autoreset_mode=AutoresetMode.DISABLED,
    )
    envs.reset(seed=0)
    # The blob goes right from 0.4 by 0.05 a step; the other one touches the mark and goes back.
    second = [1, 1, 1, 1, -1]
    x = 0.4
    for step in range(5):
        actions = np.array([[1, 0], [second[step], 0]], np.float32)
        _, rewards, terminations, truncations, infos = envs.step(actions)
        x += 0.05
        assert terminations.tolist() == [step == 4, False]
        assert not truncations.any()
        assert rewards == pytest.approx([0.5 + (step == 4), 0.5 * second[step]], abs=1e-2)
        assert infos["success_probability"][0] == pytest.approx(sigmoid(x), abs=2e-3)


def test_where_the_environment_goes_on_after_success_so_does_imagination():
    envs = point_mass(
        1,
        at_centre,
        noise=0,
        horizon=5,
        outcome_head=PointMassOutcomeHead(success_ends=False),
        success_threshold=sigmoid(0.42),
    )
    envs.reset(seed=0)
    for step in range(5):
        _, rewards, terminations, truncations, infos = envs.step(np.array([[1, 0]], np.float32))
        # A blob that goes on at full speed earns the same in every step, and no bonus.
        assert rewards == pytest.approx([0.5], abs=1e-2)
        assert infos["success_probability"][0] > envs.success_threshold
        assert not terminations.any()
        assert truncations.tolist() == [step == 4]


@pytest.mark.parametrize("options", [{}, {"outcome_head": PointMassOutcomeHead()}])
def test_without_a_head_or_an_instruction_there_is_no_reward_and_no_end(options):
    envs = point_mass(2, at_centre, instruction="" if options else None, **options)
    _, infos = envs.reset(seed=0)
    for _ in range(8):
        _, rewards, terminations, _, step_infos = envs.step(np.ones((2, 2), np.float32))
        assert not rewards.any()
        assert not terminations.any()
        assert "success_probability" not in infos | step_infos


def test_the_given_instruction_replaces_that_of_the_start():
    envs = point_mass(2, at_centre, instruction="left")
    assert envs.reset()[1]["instruction"].tolist() == ["left", "left"]
    assert point_mass(1, at_centre).reset()[1]["instruction"].tolist() == ["right"]


def test_the_horizon_guards_against_drift():
    envs = point_mass(2, at_centre, horizon=3)
    envs.reset(seed=0)
    ends = [envs.step(np.zeros((2, 2), np.float32))[3].tolist() for _ in range(8)]
    # With next-step autoreset, every fourth step is a reset.
    expected = [[step in (2, 6)] * 2 for step in range(8)]
    assert ends == expected


def test_disagreement_tells_how_uncertain_the_model_is():
    values = []
    for noise in (0.0, 0.02, 0.2):
        envs = point_mass(3, at_centre, noise=noise, num_samples=8)
        assert "disagreement" not in envs.reset(seed=0)[1]
        values.append(envs.step(np.zeros((3, 2), np.float32))[4]["disagreement"])
    assert np.allclose(values[0], 0, atol=1e-6)
    assert (values[0] < values[1]).all()
    assert (values[1] < values[2]).all()
    envs = point_mass(3, at_centre)
    envs.reset(seed=0)
    assert "disagreement" not in envs.step(np.zeros((3, 2), np.float32))[4]


def test_seeds_make_episodes_repeatable():
    envs = point_mass(2)

    def episode(seed):
        frames = [envs.reset(seed=seed)[0]]
        return frames + [envs.step(np.zeros((2, 2), np.float32))[0] for _ in range(4)]

    first = episode(5)
    assert np.array_equal(first, episode(5))
    assert np.array_equal(first, episode(np.int64(5)))
    assert np.array_equal(first, episode([5, 6]))
    assert envs.np_random_seed == (5, 6)
    assert not np.array_equal(first, episode(6))
    assert not np.array_equal(first, episode(None))
    swapped = episode([6, 5])
    assert np.array_equal(first, np.array(swapped)[:, ::-1])


def test_observations_are_not_written_to_later():
    envs = point_mass(2, render_mode="rgb_array")
    observations, _ = envs.reset(seed=0)
    kept = observations.copy()
    assert np.array_equal(envs.render(), kept)
    observations[:] = 0
    assert np.array_equal(envs.render(), kept)
    after = envs.step(np.ones((2, 2), np.float32))[0]
    assert np.array_equal(envs.render(), after)
    assert point_mass(1).render() is None


def test_gymnasiums_vector_wrappers_fit():
    envs = RecordEpisodeStatistics(point_mass(2, horizon=3))
    envs.reset(seed=0)
    for _ in range(3):
        infos = envs.step(np.zeros((2, 2), np.float32))[4]
    assert infos["episode"]["l"].tolist() == [3, 3]


def test_an_episode_ends_where_imagination_is_not_to_be_trusted():
    options = {"num_samples": 8, "horizon": 6, "autoreset_mode": AutoresetMode.SAME_STEP}
    envs = point_mass(3, at_centre, noise=0.02, max_disagreement=0.036, **options)
    envs.reset(seed=0)
    lived, kinds = np.zeros(3, int), set()
    for _ in range(20):
        _, _, terminations, truncations, infos = envs.step(np.zeros((3, 2), np.float32))
        assert not terminations.any()
        lived += 1
        for row, ended in enumerate(truncations.tolist()):
            told = infos["final_info"] if ended else infos
            untrusted = told["disagreement"][row] > 0.036
            assert told["untrusted"][row] == untrusted
            assert ended == (untrusted or lived[row] == 6)
            kinds.add((ended, bool(untrusted)))
        lived[truncations] = 0
    assert kinds == {(False, False), (True, False), (True, True)}


def test_what_is_not_trusted_is_no_success():
    options = {"noise": 1e-3, "num_samples": 4, "outcome_head": PointMassOutcomeHead()}
    for limit, ends in ((1.0, [True, False]), (1e-6, [False, True])):
        envs = point_mass(
            1, at_centre, success_threshold=sigmoid(0.3), max_disagreement=limit, **options
        )
        envs.reset(seed=0)
        _, rewards, terminations, truncations, infos = envs.step(np.array([[1, 0]], np.float32))
        assert [terminations[0], truncations[0]] == ends
        assert rewards == pytest.approx(0.5 + ends[0], abs=0.05)
        assert infos["untrusted"].tolist() == [ends[1]]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((2, 3)), r"shape \(2, 2\)"),
        (np.zeros(2), r"shape \(2, 2\)"),
        ([[0, 0], [0]], r"\(2, 2\) numbers"),
        (np.array([[0, 0], [np.nan, 0]]), "finite.* environment 1"),
        (np.array([[1.5, 0], [0, 0]]), "between.* environment 0"),
    ],
)
def test_bad_actions_are_refused_before_any_work(actions, message):
    envs = point_mass(2)
    envs.reset(seed=0)
    with pytest.raises(SfvgenError, match=message):
        envs.step(actions)
    assert envs.world_model.batch_sizes == []


def test_stepping_needs_a_reset():
    with pytest.raises(SfvgenError, match="reset"):
        point_mass(2).step(np.zeros((2, 2), np.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": [1]}, "2 environments got 1 seeds"),
        ({"options": {"reset_mask": np.array([True, False])}}, "first reset"),
        ({"options": {"reset_mask": np.array([1, 0])}}, "reset_mask"),
        ({"options": {"reset_mask": np.zeros(2, bool)}}, "reset_mask"),
        ({"options": {"nonsense": 1}}, r"'reset_mask' alone, got \['nonsense'\]"),
    ],
)
def test_bad_resets_are_refused(arguments, message):
    with pytest.raises(SfvgenError, match=message):
        point_mass(2).reset(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"horizon": 0}, "horizon"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_samples": True}, "num_samples must be a whole number, got True"),
        ({"instruction": 5}, "instruction must be a text or None, got 5"),
        ({"max_disagreement": 0.1}, "num_samples of at least 2"),
        ({"max_disagreement": 0, "num_samples": 2}, "max_disagreement must be above 0"),
        ({"success_threshold": 0}, "success_threshold"),
        ({"render_mode": "human"}, "render_mode"),
        ({"autoreset_mode": "Never"}, "autoreset_mode must be one of .*'SameStep'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(SfvgenError, match=message):
        point_mass(**{"num_envs": 1, **options})


def test_a_model_without_actions_is_refused():
    model = PointMassWorldModel()
    model.config.action_low = model.config.action_high = []
    with pytest.raises(SfvgenError, match="without actions"):
        WorldModelVectorEnv(model, EnvStarts(PointMassEnv()), 1)


@pytest.mark.parametrize("limit", [1e-5, 1.0, 1e4])
def test_actions_are_bounded_at_any_scale(limit):
    model = PointMassWorldModel()
    model.config.action_low, model.config.action_high = [-limit] * 2, [limit] * 2
    envs = WorldModelVectorEnv(model, at_centre, 1)
    envs.reset(seed=0)
    envs.step(np.full((1, 2), limit * (1 + 1e-6), np.float32))
    with pytest.raises(SfvgenError, match="must be finite and lie between"):
        envs.step(np.full((1, 2), 1.01 * limit, np.float32))


def test_seeds_may_be_an_array():
    envs, others = point_mass(2), point_mass(2)
    found, _ = envs.reset(seed=np.array([3, 8]))
    assert np.array_equal(found, others.reset(seed=[3, 8])[0])


@pytest.mark.parametrize("sides", [(48, 32), (48, 48)])
def test_starts_of_another_size_are_refused(sides):
    sizes = iter(sides)
    envs = point_mass(2, lambda rng: Start(np.zeros((1, 32, next(sizes), 3), np.uint8)))
    with pytest.raises(SfvgenError, match=r"must be 32 x 32 pixels, .* got 32 x 48"):
        envs.reset()
