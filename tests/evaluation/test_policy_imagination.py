"""Policies in imagined worlds, against a world whose model is perfect."""

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from sfvgen_policies.sb3 import SB3Policy

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.evaluation.policy_evaluation import TASK
from sfvgen_planner.evaluation.policy_imagination import act_in_imagination, real_starts, replay
from sfvgen_planner.evaluation.policy_ladder import Rung
from sfvgen_planner.evaluation.tabletop import ENV_ID
from sfvgen_planner.imagination import WorldModelVectorEnv
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from tests.point_mass import (
    SIZE,
    SPEED,
    PointMassEnv,
    PointMassOutcomeHead,
    PointMassWorldModel,
    draw,
    locate,
)
from tests.reach import LineHead, ReachEnv, mover


def test_replay_ends_with_the_actions():
    model, head, env = PointMassWorldModel(), PointMassOutcomeHead(), PointMassEnv()
    starts = real_starts(env, [3, 4, 5], SIZE)
    actions = [np.float32([[1, 0]] * steps) for steps in (3, 9, 1)]
    settings = {"num_inference_steps": 1, "batch_size": 2, "description": ""}
    found = replay(model, head, starts, actions, **settings)
    assert [len(one) for one in found] == [3, 9, 1]
    for one, start in zip(found, starts, strict=True):
        begin = locate(start.frames)[0]
        path = begin + SPEED * np.arange(1, len(one) + 1)[:, None] * [1, 0]
        log_odds = locate(draw(path))[:, 0]
        assert one == pytest.approx(1 / (1 + np.exp(-log_odds)), abs=5e-3)


def test_an_imagined_world_ends_in_success_or_at_the_horizon():
    model, env = PointMassWorldModel(), ReachEnv()
    starts = real_starts(env, range(3), SIZE)
    settings = {"success_threshold": 0.5, "num_inference_steps": 1}
    found = act_in_imagination(
        model, LineHead(), mover(1, turn=99), starts, range(3), horizon=20, **settings
    )
    for one in found:
        assert (one >= 0.5).tolist() == [False] * (len(one) - 2) + [True] * 2
    still = act_in_imagination(
        model, LineHead(), mover(0), starts, [7, 8, 9], horizon=4, **settings
    )
    assert [len(one) for one in still] == [4, 4, 4]
    assert np.max(still) < 0.01


def test_an_sb3_model_learns_and_is_judged_in_imagination():
    sb3 = pytest.importorskip("stable_baselines3")
    from sfvgen_planner.imagination.sb3 import SB3VecEnv

    torch.manual_seed(0)
    model = tiny_world_model()
    head = OutcomeHead(4, 4, len(model.tokenizer), 8, 1)
    env = make_env(ENV_ID, TASK)
    starts = real_starts(env, [0, 1], 64)
    worlds = WorldModelVectorEnv(
        model, lambda rng: starts[0], 2, horizon=2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    sizes = {"features_extractor_kwargs": {"features_dim": 8}, "net_arch": [8]}
    agent = sb3.PPO(
        "CnnPolicy", SB3VecEnv(worlds), n_steps=2, batch_size=4, n_epochs=1, policy_kwargs=sizes
    ).learn(4)
    rung = Rung("ppo", lambda env: SB3Policy(env, agent), acts_on_images=True)
    settings = {"horizon": 2, "success_threshold": 0.5, "num_inference_steps": 1}
    found = act_in_imagination(model, head, rung, starts, [0, 1], **settings)
    assert all(np.isfinite(one).all() and 1 <= len(one) <= 2 for one in found)
    # The same policy acts in the simulator, whose observation is a Dict.
    observation, info = env.reset(seed=0)
    action = rung.make(env).act(observation, info["instruction"])
    expected, _ = agent.predict(observation["image"], deterministic=True)
    assert np.array_equal(action, expected)
    env.close()
