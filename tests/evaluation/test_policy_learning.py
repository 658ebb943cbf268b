"""Policies trained in imagination and in the simulator, in a world whose model is perfect."""

import json
import shutil
import sys
import warnings
from collections import Counter
from dataclasses import replace
from math import ceil

import numpy as np
import pytest
import torch

from sfvgen_planner.cli.main import main
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from tests.point_mass import PointMassEnv, PointMassWorldModel, locate
from tests.processes import quick_workers
from tests.reach import LINE, NUM_STEPS, LineHead, ReachEnv

sb3 = pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import DummyVecEnv  # noqa: E402

from sfvgen_planner.evaluation import policy_learning as evaluation  # noqa: E402
from sfvgen_planner.evaluation.policy_learning import (  # noqa: E402
    FIGURES,
    TASK,
    PolicyLearningConfig,
    measure_policy_learning,
    training_env,
)
from sfvgen_planner.evaluation.policy_training import (  # noqa: E402
    ALGORITHMS,
    TRAINING_SEED,
    record_starts,
)

COUNTED = Counter()


class CountingEnv(ReachEnv):
    """Counts the steps of all its kind; the reward is to come nearer to the line."""

    def step(self, action):
        COUNTED["steps"] += 1
        before = self.position[0]
        observation, _, terminated, truncated, info = super().step(action)
        return observation, 10 * float(self.position[0] - before), terminated, truncated, info

    def _info(self):
        left = max(0.0, LINE - float(self.position[0]))
        return super()._info() | {"distance_m": left}


class ReachHead(LineHead):
    """Knows the line and the environment's reward."""

    def forward(self, before, after, token_ids):
        earlier, later = (
            locate((latents * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())[:, 0]
            for latents in (before, after)
        )
        return self.success_logits(after, token_ids), torch.from_numpy(10 * (later - earlier))


class WatchedModel(PointMassWorldModel):
    """Takes down how many real steps there were whenever it imagines."""

    def __init__(self):
        super().__init__()
        self.real_steps = []

    def to(self, device):
        return self

    def __call__(self, *args, **kwargs):
        self.real_steps.append(COUNTED["steps"])
        return super().__call__(*args, **kwargs)


class IdleEnv(DummyVecEnv):
    """So many environments that nobody steps."""

    def __init__(self, num_envs):
        super().__init__([lambda: PointMassEnv()])
        self.num_envs = num_envs


@pytest.fixture
def model(monkeypatch):
    model = WatchedModel()
    COUNTED.clear()
    monkeypatch.setattr(evaluation, "make_env", lambda *_: CountingEnv())
    monkeypatch.setattr(evaluation, "required_outcome_head", lambda _: ReachHead())
    monkeypatch.setattr(evaluation, "load_world_model", lambda _: model)
    return model


@pytest.fixture
def config(model, tmp_path):
    return PolicyLearningConfig(
        model="perfect",
        device="cpu",
        folder=tmp_path,
        num_test_episodes=3,
        num_training_seeds=2,
        num_start_steps=2 * NUM_STEPS + 1,
        num_imagined_steps=60,
        simulator_budgets=(1, 2),
        num_worlds=2,
        num_simulators=2,
        model_steps=7,
    )


def test_real_and_imagined_steps_are_those_that_were_made(model, config):
    figures = list(measure_policy_learning(config))
    rates = [f.fields for f in figures if f.name == "distance_m"]
    assert [f.fields for f in figures if f.name == "return"] == rates
    for criterion in ("last_frame", "any_frame"):
        judged = [f.fields for f in figures if f.fields.get("criterion") == criterion]
        assert judged == [told | {"criterion": criterion} for told in rates]
    assert len(figures) == 4 * len(rates)
    singles = [told for told in rates if told["num_training_seeds"] == 1]
    assert [(told["trained_in"], told["training_seeds"]) for told in singles] == [
        (where, [seed])
        for where in ("none", "imagination", "simulator", "simulator")
        for seed in range(2)
    ]
    assert [told for told in rates if told["num_training_seeds"] == 2] == [
        told | {"num_training_seeds": 2, "training_seeds": [0, 1]} for told in singles[::2]
    ]
    starts = 3 * NUM_STEPS
    # The steps of the model's data count too.
    behind = starts + 7
    assert [told["real_steps"] for told in singles[::2]] == [0, behind, behind + 1, 2 * behind]
    trained = sum(told["real_steps"] for told in singles if told["trained_in"] == "simulator")
    tested = len(singles) * 3 * NUM_STEPS
    assert COUNTED["steps"] == starts + trained + tested
    assert sum(told["imagined_steps"] for told in singles) == sum(model.batch_sizes) == 120
    # While a policy learns in imagination no real step is made: one number for each training seed.
    untrained = starts + 2 * 3 * NUM_STEPS
    assert set(model.real_steps) == {untrained, untrained + 3 * NUM_STEPS}
    for told in rates:
        shared = {"algorithm": "SAC", "model": "perfect", "model_steps": 7}
        shared |= {"env": "sfvgen/TabletopReturn-v0", "env_kwargs": TASK}
        assert shared.items() <= told.items()


def test_policies_of_both_worlds_are_saved_and_see_the_same(config, tmp_path, monkeypatch):
    monkeypatch.setenv("SB3_LOGDIR", str(tmp_path / "logs"))
    config = replace(config, num_training_seeds=1, algorithm="PPO", model_steps=None)
    list(measure_policy_learning(config))
    files = sorted((config.folder / "policies").iterdir())
    assert [file.name for file in files] == [
        "perfect_ppo_imagination_60_steps_seed_0.zip",
        "perfect_ppo_simulator_48_steps_seed_0.zip",
        "perfect_ppo_simulator_96_steps_seed_0.zip",
    ]
    imagined, *simulated = (sb3.PPO.load(file) for file in files)
    for agent in simulated:
        assert agent.observation_space == imagined.observation_space
        assert agent.action_space == imagined.action_space
    assert not (tmp_path / "logs").exists()  # Training leaves nothing else behind.


# SAC begins to learn after 100 steps.
@pytest.mark.parametrize(("algorithm", "num_steps"), [("SAC", 108), ("PPO", 200)])
def test_training_can_be_repeated(config, algorithm, num_steps):
    config = replace(
        config, algorithm=algorithm, num_imagined_steps=num_steps, simulator_budgets=()
    )
    first, second = (list(measure_policy_learning(config)) for _ in range(2))
    assert [f.value for f in first] == [f.value for f in second]
    distances = [f.value for f in first if f.name == "distance_m"]
    assert len(set(distances)) == 6  # training and its seed make a difference


def test_what_is_learnt_in_imagination_holds_in_the_simulator(config):
    config = replace(
        config,
        algorithm="PPO",
        num_training_seeds=1,
        num_start_steps=6 * NUM_STEPS,
        num_imagined_steps=6000,
        simulator_budgets=(64,),
        num_worlds=16,
        num_simulators=16,
        model_steps=None,
    )
    rows = [f for f in measure_policy_learning(config) if f.fields.get("criterion") == "last_frame"]
    found = {f.fields["trained_in"]: (f.value, f.fields["real_steps"]) for f in rows}
    assert found == {"none": (0, 0), "imagination": (1, 96), "simulator": (1, 6144)}


@pytest.mark.parametrize("algorithm", ["SAC", "PPO"])
@pytest.mark.parametrize("num_envs", [1, 3, 16, 64, 200])
@pytest.mark.parametrize("num_steps", [1, 50, 2048, 20_000, 100_001])
def test_budgets_are_kept_for_any_number_of_worlds(algorithm, num_envs, num_steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that of a cut-off mini-batch
        agent = getattr(sb3, algorithm)(
            "MlpPolicy",
            IdleEnv(num_envs),
            policy_kwargs={"net_arch": [4]},
            **ALGORITHMS[algorithm](num_steps, num_envs),
        )
    if algorithm == "SAC":
        kept = agent.replay_buffer.buffer_size * num_envs
        assert num_steps - num_envs < kept <= max(num_steps, num_envs)
        return
    rollout = agent.n_steps * num_envs
    made = ceil(num_steps / rollout) * rollout
    # A tenth more at most, or what two steps at least of all worlds come to.
    assert num_steps <= made <= max(1.1 * num_steps, num_steps + num_envs, 2 * num_envs)
    assert agent.batch_size >= 32 or agent.batch_size == rollout


def test_starts_have_a_whole_context_and_the_instruction():
    env = CountingEnv()
    starts = record_starts(env, "random", 20, num_past_frames=4, image_size=32)
    assert starts.num_steps == 2 * NUM_STEPS
    assert len(starts) == 2 * (NUM_STEPS - 3)
    first, _ = env.reset(seed=TRAINING_SEED)
    assert np.array_equal(starts[0].frames[0], first)
    every = [starts[number] for number in range(len(starts))]
    assert {(len(start.frames), start.instruction) for start in every} == {(4, "right")}
    drawn = {starts(np.random.default_rng(seed)).frames.tobytes() for seed in range(500)}
    assert drawn == {start.frames.tobytes() for start in every}
    with pytest.raises(SfvgenError, match="none of the recorded episodes has 17 steps"):
        record_starts(env, "random", 20, num_past_frames=17, image_size=32)


def test_each_start_has_the_instruction_of_its_moment():
    """The point mass is sent right for 4 steps, then down; random policies do not listen."""
    starts = record_starts(PointMassEnv(num_steps=8), "random", 8, num_past_frames=2, image_size=32)
    told = [starts[number].instruction for number in range(len(starts))]
    assert told == ["right"] * 3 + ["down"] * 4


def test_policies_of_models_whose_folders_are_called_alike_have_files_of_their_own():
    stems = [PolicyLearningConfig(model=m).model_stem for m in ("a/x/model", "a/y/model", "/a/x")]
    assert stems == ["a_x_model", "a_y_model", "a_x"]


@pytest.mark.parametrize("module", ["", "sfvgen_envs:"])
@pytest.mark.parametrize("horizon", [32, 16])
def test_to_be_out_of_time_cuts_an_episode_off_and_does_not_end_it(horizon, module):
    env = training_env(f"{module}sfvgen/TabletopReturn-v0", TASK, 1, horizon)
    env.reset(seed=0)
    ends = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(horizon)]
    assert ends == [(False, False)] * (horizon - 1) + [(False, True)]
    env.close()


def test_an_interruption_is_one_message_and_keeps_what_was_measured(
    model, monkeypatch, tmp_path, capsys
):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(WatchedModel, "__call__", interrupted)
    out = tmp_path / "figures.json"
    command = ["eval", "policy-learning", "--out", str(out), "--device", "cpu", "--episodes", "2"]
    command += ["--num-start-steps", "16", "--num-training-seeds", "1", "--model", "perfect"]
    assert main(command) == 130
    assert capsys.readouterr().err.endswith("\ninterrupted\n")
    rows = json.loads(out.read_text())["figures"]
    assert {row["trained_in"] for row in rows} == {"none"}
    assert {row["name"] for row in rows} == set(FIGURES)
    assert list(tmp_path.iterdir()) == [out]


def test_the_command_trains_in_the_real_simulator(tmp_path, tiny_checkpoint, capsys, monkeypatch):
    quick_workers(monkeypatch)
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    torch.manual_seed(0)
    OutcomeHead(4, 4, len(tiny_world_model().tokenizer), 8, 1).save_pretrained(
        folder / "outcome_head"
    )
    out = tmp_path / "figures.json"
    command = ["eval", "policy-learning", "--model", str(folder), "--device", "cpu"]
    command += ["--out", str(out), "--episodes", "1", "--num-training-seeds", "1"]
    command += ["--algorithm", "PPO", "--num-worlds", "2", "--num-start-steps", "5"]
    command += ["--num-simulators", "2"]
    command += ["--start-policy", "play", "--num-imagined-steps", "16", "--model-steps", "9"]
    command += ["--num-workers", "2"]
    assert main([*command, "--simulator-budgets", "0.5"]) == 0
    rows = json.loads(out.read_text())["figures"]
    assert {row["name"] for row in rows} == set(FIGURES)
    rates = [row for row in rows if row.get("criterion") == "last_frame"]
    # An episode of play lasts 32 steps.
    assert [(row["trained_in"], row["real_steps"], row["imagined_steps"]) for row in rates] == [
        ("none", 0, 0),
        ("imagination", 32 + 9, 16),
        ("simulator", 20, 0),
    ]
    assert [row.get("start_policy") for row in rates] == [None, "play", None]
    assert all(row["seeds"] == [100_000] and row["model_steps"] == 9 for row in rows)
    assert "success_rate 0 1 [0, 0] trained_in=simulator algorithm=PPO" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--algorithm", "DQN"], "there is no algorithm 'DQN'; choose from SAC, PPO"),
        (["--trained-in", "dreams"], "there is no world 'dreams'; choose from none, imagination"),
        (["--num-worlds", "0"], "num_worlds must be at least 1, got 0"),
        (["--num-simulators", "0"], "num_simulators must be at least 1, got 0"),
        (["--num-start-steps", "0"], "num_start_steps must be at least 1, got 0"),
        (["--num-imagined-steps", "-1"], "num_imagined_steps must be at least 1, got -1"),
        (["--num-training-seeds", "0"], "num_training_seeds must be at least 1, got 0"),
        (["--simulator-budgets", "1", "0"], "simulator_budgets must be finite and above 0"),
        (["--simulator-budgets", "nan"], "simulator_budgets must be finite and above 0, got nan"),
        (["--model-steps", "-1"], "model_steps must be at least 0, got -1"),
        (["--start-policy", "nobody"], "start frames cannot be recorded: The policy 'nobody'"),
    ],
)
def test_bad_settings_are_one_sentence(model, options, message, tmp_path, capsys):
    out = tmp_path / "a.json"
    command = ["eval", "policy-learning", "--model", "perfect", "--device", "cpu"]
    assert main([*command, "--out", str(out), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not out.exists()


def test_a_model_of_other_actions_is_refused(model, config):
    model.config.action_low = [-2.0, -2.0]
    with pytest.raises(SfvgenError, match="the world model was trained on"):
        next(measure_policy_learning(config))
    assert not COUNTED["steps"]


def test_a_missing_sb3_is_named(monkeypatch, tmp_path, capsys):
    for name in ("imagination.sb3", "evaluation.policy_training", "evaluation.policy_learning"):
        monkeypatch.delitem(sys.modules, f"sfvgen_planner.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    assert main(["eval", "policy-learning", "--out", str(tmp_path / "a.json")]) == 2
    assert "pip install 'sfvgen-planner[sb3]'" in capsys.readouterr().err
