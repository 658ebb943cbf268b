"""Policies learnt in another environment: held actions, a reward in every step, and no end."""

import json
from collections import Counter
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from sfvgen_policies import make_policy

from sfvgen_planner.cli.main import main
from sfvgen_planner.data import EpisodeStore, make_env
from sfvgen_planner.data.episode import EpisodeSource
from sfvgen_planner.data.rollout import record_episode
from sfvgen_planner.data.spec import StoreSpec
from tests.point_mass import SIZE, SPEED, PointMassEnv, PointMassWorldModel, locate

pytest.importorskip("stable_baselines3")

from sfvgen_planner.evaluation import policy_learning as evaluation

ENV_ID = "tests/Near-v0"
SKIP = 2
NUM_FRAMES = 12
NUM_STEPS = SKIP * NUM_FRAMES
GOAL = 0.7
COUNTED = Counter()


class NearEnv(PointMassEnv):
    """Pays 10 less the way to a line in every step; to stay near it is success and ends nothing."""

    def __init__(self, render_mode="rgb_array", goal=0.0):
        super().__init__(render_mode, num_steps=10_000)
        self.goal = goal

    def step(self, action):
        COUNTED["steps"] += 1
        observation, _, _, _, info = super().step(np.asarray(action) / SKIP)
        return observation, 10 - 10 * self._way, False, False, info

    @property
    def _way(self):
        return abs(float(self.position[0]) - self.goal)

    def _info(self):
        return {"instruction": "right", "success": self._way < 0.08}


class NearHead(torch.nn.Module):
    """Knows the reward of the steps between two frames, and the line."""

    config = SimpleNamespace(success_ends=False)

    def tokenize(self, world_model, instructions):
        return world_model.tokenize(instructions)

    def forward(self, before, after, token_ids):
        earlier, later = (
            locate((latents * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())[:, 0]
            for latents in (before, after)
        )
        steps = [earlier + (later - earlier) * part / SKIP for part in range(1, SKIP + 1)]
        rewards = sum(10 - 10 * np.abs(x - GOAL) for x in steps)
        logits = 1000 * (0.08 - np.abs(later - GOAL))
        return torch.from_numpy(logits), torch.from_numpy(rewards)


class Model(PointMassWorldModel):
    def __init__(self, data_steps=None):
        super().__init__()
        self.config.frame_skip = SKIP
        self.config.data_steps = data_steps

    def to(self, device):
        return self


@pytest.fixture
def model(monkeypatch):
    model = Model()
    COUNTED.clear()
    gym.register(ENV_ID, NearEnv, max_episode_steps=NUM_STEPS)
    monkeypatch.setattr(evaluation, "required_outcome_head", lambda _: NearHead())
    monkeypatch.setattr(evaluation, "load_world_model", lambda _: model)
    yield model
    del gym.registry[ENV_ID]


def learn(folder, options, *more):
    out = folder / "figures.json"
    command = ["eval", "policy-learning", "--model", "perfect", "--device", "cpu"]
    command += ["--env", ENV_ID, "--env-kwargs", '{"goal": 0.7}', "--out", str(out)]
    command += ["--episodes", "4", "--num-training-seeds", "1", "--algorithm", "PPO"]
    assert main([*command, *options.split(), *more]) == 0
    return json.loads(out.read_text())["figures"]


def test_both_worlds_pay_the_same_and_end_alike(model, tmp_path, monkeypatch):
    seen = []

    def watched(algorithm, envs, num_steps, **kwargs):
        """Go to the middle in three steps before the training begins."""
        if num_steps:
            envs.venv.seed(0)
            x = locate(envs.venv.reset())[:, 0]
            for step in range(NUM_FRAMES):
                way = np.where((x < 0.5) & (step < 3), 1, -1) * (step < 3)
                actions = np.stack([way, 0 * way], axis=1).astype(np.float32)
                _, rewards, dones, infos = envs.venv.step(actions)
                held = [x + SPEED * way * part / SKIP for part in range(1, SKIP + 1)]
                expected = sum(10 - 10 * np.abs(one - GOAL) for one in held)
                np.testing.assert_allclose(rewards, expected, atol=0.4)
                x = held[-1]
                assert dones.tolist() == [step == NUM_FRAMES - 1] * len(dones)
                assert all(info["TimeLimit.truncated"] == dones[0] for info in infos)
            seen.append(type(envs.venv).__name__)
        return train(algorithm, envs, num_steps, **kwargs)

    train = evaluation.train
    monkeypatch.setattr(evaluation, "train", watched)
    options = "--num-imagined-steps 16 --num-start-steps 72 --horizon 12 --simulator-budgets 1"
    rows = learn(tmp_path, options, "--num-worlds", "4", "--num-simulators", "3")
    assert seen == ["SB3VecEnv", "DummyVecEnv"]
    # No distance is told in this environment.
    assert {row["name"] for row in rows} == {"success_rate", "return"}
    assert {(row["env"], row["env_kwargs"]["goal"]) for row in rows} == {(ENV_ID, GOAL)}
    told = {row["trained_in"]: row for row in rows}
    assert (told["imagination"]["real_steps"], told["imagination"]["horizon"]) == (72, 12)
    # A step is a frame, for which the environment makes two; each simulator was watched for 12.
    made = 72 + told["simulator"]["real_steps"] + 3 * 12 + 3 * 4 * NUM_FRAMES
    assert COUNTED["steps"] == SKIP * made
    numbers = [told[where]["num_worlds"] for where in ("imagination", "simulator")]
    assert numbers == [4, 3]


def test_figures_are_those_of_the_test_episodes(model, tmp_path):
    class Right:
        def reset(self, seed=None):
            pass

        def act(self, observation, instruction):
            return np.float32([1, 0])

    env = make_env(ENV_ID, {"goal": 0.8}, SKIP)
    returns, by_last, by_any = [], [], []
    for seed in range(4):
        env.reset(seed=seed)
        x, earned, near = float(env.unwrapped.position[0]), 0.0, False
        for step in range(1, NUM_STEPS + 1):
            way = abs(min(1, x + SPEED * step / SKIP) - 0.8)
            earned += 10 - 10 * way
            near = near or (step % SKIP == 0 and way < 0.08)
        verdicts = evaluation._verdicts(record_episode(env, Right(), seed, EpisodeSource()))
        returns.append(verdicts["return", None])
        assert returns[-1] == pytest.approx(earned, abs=1e-3)
        by_last.append(verdicts["success_rate", "last_frame"])
        by_any.append(verdicts["success_rate", "any_frame"])
        assert by_any[-1] == near
    # All run over the line.
    assert by_any == [1] * 4
    assert by_last == [0] * 4
    env.close()


def recorded(folder, num_episodes, frame_skip=SKIP):
    """Episodes of random actions, of which every second one listens."""
    env = make_env(ENV_ID, {"goal": GOAL}, frame_skip)
    spec = StoreSpec(ENV_ID, frame_skip, (SIZE, SIZE), (-1.0, -1.0), (1.0, 1.0), proprio_size=2)
    with EpisodeStore.create(folder, spec) as store:
        for seed in range(num_episodes):
            policy = make_policy("random", env)
            policy.follows_instructions = bool(seed % 2)
            store.append(record_episode(env, policy, seed, EpisodeSource()))
    env.close()
    COUNTED.clear()
    return str(folder)


@pytest.mark.parametrize(("data_steps", "behind"), [(48, 48), (100, 148), (None, 48)])
def test_data_that_the_model_was_trained_on_counts_once(model, tmp_path, data_steps, behind):
    model.config.data_steps = data_steps
    store = recorded(tmp_path / "data", 4)
    options = "--num-imagined-steps 8 --num-worlds 2 --num-simulators 2 --simulator-budgets 0.25"
    rows = learn(tmp_path, options, "--start-data", store)
    told = {row["trained_in"]: row for row in rows}
    assert told["imagination"]["real_steps"] == behind
    assert told["imagination"]["start_data"] == store
    assert "start_policy" not in told["imagination"]
    assert told["simulator"]["real_steps"] == pytest.approx(behind / 4, abs=2)
    assert {row["model_steps"] for row in rows} == {data_steps}
    # Only the simulator's policies and the tests made steps.
    made = told["simulator"]["real_steps"] + 3 * 4 * NUM_FRAMES
    assert COUNTED["steps"] == SKIP * made


def test_worlds_can_be_chosen_and_their_rows_are_added(model, tmp_path):
    store = recorded(tmp_path / "data", 4)
    options = "--num-imagined-steps 8 --num-worlds 2 --num-simulators 2 --simulator-budgets 1"
    rows = learn(tmp_path, options, "--start-data", store, "--trained-in", "simulator")
    assert {(row["trained_in"], row["real_steps"]) for row in rows} == {("simulator", 48)}
    more = learn(tmp_path, options, "--start-data", store, "--trained-in", "none", "imagination")
    assert more[: len(rows)] == rows
    assert {row["trained_in"] for row in more[len(rows) :]} == {"none", "imagination"}


def test_starts_of_a_store_have_an_instruction_and_a_whole_context(model, tmp_path):
    store = EpisodeStore.open(recorded(tmp_path / "data", 4))
    starts = evaluation.read_starts(store, num_past_frames=4)
    assert starts.num_steps == 4 * NUM_FRAMES
    # Two episodes listen; their first three frames have too little behind them.
    assert len(starts) == 2 * (NUM_FRAMES - 3)
    assert np.array_equal(starts[0].frames, store[1].frames[:4])
    assert np.array_equal(starts[len(starts) - 1].frames, store[3].frames[-5:-1])
    assert {starts[number].instruction for number in range(len(starts))} == {"right"}


def test_bad_data_to_start_from_is_one_sentence(model, tmp_path, capsys):
    def error(*options):
        command = ["eval", "policy-learning", "--model", "perfect", "--device", "cpu"]
        assert main([*command, "--out", str(tmp_path / "a.json"), *options]) == 2
        text = capsys.readouterr().err.strip()
        assert text.count("\n") == 0
        return text

    here = ("--env", ENV_ID, "--env-kwargs", '{"goal": 0.7}')
    other = recorded(tmp_path / "other", 2, frame_skip=3)
    assert "3 environment steps per frame" in error(*here, "--start-data", other)
    deaf = recorded(tmp_path / "deaf", 1)
    assert "4 steps and an instruction" in error(*here, "--start-data", deaf)
    assert "is no episode store" in error(*here, "--start-data", str(tmp_path / "none"))
    assert "--env-kwargs goes with --env" in error("--env-kwargs", "{}")
    assert "--env-kwargs must be" in error("--env", ENV_ID, "--env-kwargs", "goal")
    assert "horizon must be at least 1, got 0" in error(*here, "--horizon", "0")
    assert not COUNTED["steps"]
