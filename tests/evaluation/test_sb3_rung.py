"""Checkpoints of SB3 on the ladder, against SB3's own evaluation of them."""

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from sfvgen_planner.cli.main import main
from sfvgen_planner.data.environment import make_env
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation import policy_evaluation as evaluation
from sfvgen_planner.evaluation.policy_evaluation import (
    TASK,
    PolicyEvaluationConfig,
    measure_policies,
)
from sfvgen_planner.evaluation.tabletop import ENV_ID
from sfvgen_planner.imagination import ImaginationWrapper, ObservationEncoder
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from tests.point_mass import SIZE, PointMassWorldModel
from tests.reach import NUM_STEPS, LineHead, ReachEnv, mover

sb3 = pytest.importorskip("stable_baselines3")

from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402

from sfvgen_planner.evaluation.policy_training import CameraObservation, camera_envs  # noqa: E402
from sfvgen_planner.evaluation.sb3_rung import sb3_rung  # noqa: E402
from sfvgen_planner.imagination.sb3 import EncodedVecEnv  # noqa: E402

NUM_EPISODES = 12
SETTINGS = {"PPO": {"n_steps": 2, "batch_size": 2}, "SAC": {"buffer_size": 2}}


@pytest.fixture
def reach(monkeypatch):
    monkeypatch.setattr(evaluation, "make_env", lambda *_: ReachEnv())
    monkeypatch.setattr(evaluation, "required_outcome_head", lambda _: LineHead())
    monkeypatch.setattr(PointMassWorldModel, "to", lambda self, _: self, raising=False)
    monkeypatch.setattr(evaluation, "load_world_model", lambda _: PointMassWorldModel())
    monkeypatch.setattr(evaluation, "DEFAULT_HORIZON", NUM_STEPS)
    return PolicyEvaluationConfig(device="cpu", num_policy_episodes=NUM_EPISODES)


def right_goer(algorithm, envs, speed):
    """Goes right at about a speed; how fast exactly, what it sees decides."""
    agent = getattr(sb3, algorithm)(
        "MultiInputPolicy", envs, seed=0, policy_kwargs={"net_arch": [8]}, **SETTINGS[algorithm]
    )
    head = agent.policy.action_net if algorithm == "PPO" else agent.actor.mu
    with torch.no_grad():
        head.weight *= 0.1
        head.bias[:] = torch.tensor([np.arctanh(speed) if algorithm == "SAC" else speed, 0])
    return agent


def simulated_success(agent, envs, seeds):
    """As SB3 itself plays the episodes."""
    verdicts = []

    def look(told, _):
        if told["done"]:
            verdicts.append(told["info"]["is_success"])

    for seed in seeds:
        envs.seed(seed)
        evaluate_policy(agent, envs, n_eval_episodes=1, callback=look, warn=False)
    assert len(verdicts) == len(seeds)
    return np.mean(verdicts)


@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
def test_does_as_well_as_sb3_tells_in_both_worlds(reach, algorithm, tmp_path):
    encoder = ObservationEncoder(PointMassWorldModel())
    envs = EncodedVecEnv(camera_envs(ReachEnv, 1, SIZE), encoder)
    truths = {}
    for name, speed in {"slow": 0.2, "fast": 0.27}.items():
        agent = right_goer(algorithm, envs, speed)
        agent.save(tmp_path / f"{name}.zip")
        truths[name] = simulated_success(agent, envs, reach.seeds(NUM_EPISODES))
    assert 0 < truths["slow"] < truths["fast"] < 1
    files = tuple(tmp_path / f"{name}.zip" for name in truths)
    figures = list(measure_policies(replace(reach, sb3=files), [mover(0), mover(1)]))
    for name, truth in truths.items():
        told = [f for f in figures if f.fields.get("policy") == name]
        assert [f.value for f in told] == [pytest.approx(truth)] * 5
        assert [f.fields.get("mode") for f in told] == [
            None,
            *["replay"] * 2,
            *["closed_loop"] * 2,
        ]
    closed = [
        f for f in figures if f.fields.get("mode") == "closed_loop" and "policies" in f.fields
    ]
    assert {f.value for f in closed if f.name == "episode_agreement"} == {1}
    assert {round(f.value, 9) for f in closed if f.name == "pearson_r"} == {1}


class WholeObservation(gym.Env):
    """What the table task shows, without the task."""

    def __init__(self):
        env = make_env(ENV_ID, TASK)
        self.observation_space, self.action_space = env.observation_space, env.action_space
        env.close()

    def reset(self, **kwargs):
        return self.observation_space.sample(), {}


@pytest.fixture(scope="module")
def table():
    env = ImaginationWrapper(make_env(ENV_ID, TASK), tiny_world_model())
    yield env
    env.close()


@pytest.mark.parametrize(
    ("policy", "wrap", "acts_on_images"),
    [
        ("CnnPolicy", lambda env: CameraObservation(env, 64), True),
        ("MultiInputPolicy", lambda env: env, False),
    ],
    ids=["picture", "all it shows"],
)
def test_only_what_sees_pictures_alone_acts_in_imagination(
    table, tmp_path, policy, wrap, acts_on_images
):
    kwargs = {"net_arch": [4]}
    agent = sb3.PPO(policy, wrap(WholeObservation()), **SETTINGS["PPO"], policy_kwargs=kwargs)
    agent.save(tmp_path / "agent.zip")
    encoder = ObservationEncoder(table.world_model)
    rung = sb3_rung(tmp_path / "agent.zip", table, encoder, "tiny", "cpu")
    assert (rung.name, rung.acts_on_images) == ("agent", acts_on_images)
    observation, info = table.reset(seed=0)
    seen = observation["image"] if acts_on_images else observation
    expected, _ = agent.predict(seen, deterministic=True)
    assert np.array_equal(rung.make(table).act(observation, info["instruction"]), expected)


def test_a_checkpoint_of_another_task_is_refused_before_any_work(reach, tmp_path):
    sb3.PPO("MlpPolicy", "Pendulum-v1", **SETTINGS["PPO"]).save(tmp_path / "pendulum.zip")
    config = replace(reach, sb3=(tmp_path / "pendulum.zip",))
    with pytest.raises(SfvgenError, match=r"pendulum.zip was trained on other observations \(Box"):
        next(measure_policies(config, [mover(0), mover(1)]))


def test_the_command_takes_checkpoints(tmp_path, tiny_checkpoint, monkeypatch, capsys):
    head = OutcomeHead(4, 4, len(tiny_world_model().tokenizer), 8, 1)
    monkeypatch.setattr(evaluation, "required_outcome_head", lambda _: head)
    monkeypatch.setattr(
        evaluation, "TASK", {"level": 1, "recall": "none", "steps_per_instruction": 2}
    )
    monkeypatch.setattr(evaluation, "DEFAULT_HORIZON", 2)
    monkeypatch.setattr(evaluation, "LADDER", evaluation.LADDER[:1])
    files = [str(tmp_path / name) for name in ("one.zip", "two.zip")]
    kwargs = {"net_arch": [4]}
    envs = CameraObservation(WholeObservation(), 64)
    for file in files:
        sb3.SAC("CnnPolicy", envs, **SETTINGS["SAC"], policy_kwargs=kwargs).save(file)
    command = ["eval", "policy", "--model", str(tiny_checkpoint), "--device", "cpu"]
    out = tmp_path / "a.json"
    command += ["--episodes", "1", "--out", str(out), "--sb3"]
    assert main([*command, *files]) == 2  # In two steps nobody succeeds.
    assert "all 3 policies do equally well" in capsys.readouterr().err
    rows = json.loads(out.read_text())["figures"]
    for name in ("one", "two"):
        modes = [row.get("mode") for row in rows if row.get("policy") == name]
        assert modes == [None, *["replay"] * 2, *["closed_loop"] * 2]
    assert main([*command, str(tmp_path / "missing.zip")]) == 2
    assert "missing.zip is no file that a model of Stable-Base" in capsys.readouterr().err
