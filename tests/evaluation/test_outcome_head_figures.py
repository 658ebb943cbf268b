"""The outcome head's figures, with a head and a model that know the truth."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sfvgen_policies import make_policy

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.evaluation.measure import measure
from sfvgen_planner.evaluation.outcome_head import GROUPS, imagined_steps, judge, real_steps
from sfvgen_planner.evaluation.rollout import play
from sfvgen_planner.evaluation.slow_learning import FIGURES, SlowLearningConfig
from sfvgen_planner.evaluation.statistics import mean_absolute_error, r_squared
from sfvgen_planner.evaluation.tabletop import ENV_ID, needs_memory
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.outcome_head import OutcomeHead


class PixelModel:
    """Its latents are the pictures; it imagines what really happened: it was told beforehand."""

    config = SimpleNamespace(num_past_frames=4, num_future_frames=8)
    device = torch.device("cpu")

    def __init__(self, episodes):
        self.futures = {}
        for episode in episodes:
            for now in range(4, len(episode) + 1):
                past = episode.frames[now - 4 : now].tobytes()
                self.futures[past] = episode.frames[now : now + 8]

    def encode(self, frames):
        return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float()

    def __call__(self, past, **_):
        future = np.stack([self.futures[one.tobytes()] for one in past])
        return SimpleNamespace(latents=self.encode(future), frames=None)

    def tokenize(self, instructions):
        return torch.tensor([[len(text)] for text in instructions])


class PixelHead(torch.nn.Module):
    """Log-odds tell how bright the frame is, rewards how much the step changed."""

    def tokenize(self, world_model, instructions):
        return world_model.tokenize(instructions)

    def forward(self, before, after, token_ids):
        return after.mean(dim=(1, 2, 3)) / 255, (after - before).abs().mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def episodes():
    env = make_env(ENV_ID, {"level": 1, "recall": "first"})
    played = list(play(env, make_policy("expert", env), range(2)))
    env.close()
    return played


def test_real_steps_are_those_of_the_episodes(episodes):
    steps = real_steps(PixelModel(episodes), episodes)
    for index, episode in enumerate(episodes):
        rows = steps.episode == index
        for video, frames in (
            (steps.before, episode.frames[:-1]),
            (steps.after, episode.frames[1:]),
        ):
            assert np.array_equal(video[torch.from_numpy(rows)].permute(0, 2, 3, 1), frames)
        assert np.array_equal(steps.successes[rows], episode.successes)
        assert np.array_equal(steps.rewards[rows], episode.rewards)
    assert steps.instructions == [text for episode in episodes for text in episode.instructions]


def test_imagined_steps_are_compared_with_the_same_real_ones(episodes):
    model = PixelModel(episodes)
    real, imagined = real_steps(model, episodes), imagined_steps(model, episodes, 1, 3)
    # A model that imagines the truth: every imagined step is one of the real steps.
    chosen = []
    for index, episode in enumerate(episodes):
        end = int(np.flatnonzero(real.episode == index)[-1]) + 1
        # As many chunks as fit behind the first four frames, the last one first.
        for chunk in range((len(episode) - 3) // 8):
            chosen += range(end - 8 * (chunk + 1), end - 8 * chunk)
    assert torch.equal(imagined.before, real.before[chosen])
    assert torch.equal(imagined.after, real.after[chosen])
    assert imagined.instructions == [real.instructions[row] for row in chosen]
    for name in ("successes", "rewards", "episode"):
        assert np.array_equal(getattr(imagined, name), getattr(real, name)[chosen])


def test_verdicts_are_in_the_order_of_the_steps(episodes):
    model = PixelModel(episodes)
    steps = real_steps(model, episodes[:1])
    probabilities, rewards = judge(model, PixelHead(), steps, batch_size=7)
    frames = episodes[0].frames.astype(float)
    mean = frames[1:].mean(axis=(1, 2, 3)) / 255
    assert probabilities == pytest.approx(1 / (1 + np.exp(-mean)), abs=1e-5)
    assert rewards == pytest.approx(np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3)), abs=1e-3)


def test_instructions_that_need_memory_are_told_from_others(episodes):
    for episode in episodes:
        move, recall = dict.fromkeys(episode.instructions)
        assert not needs_memory(move)
        assert needs_memory(recall)
    assert needs_memory("put the red cube back where it was before")


def test_errors_of_numbers():
    truths = np.array([1.0, 2, 3, 6])
    assert r_squared(truths, truths) == 1
    assert r_squared(truths, np.full(4, 3.0)) == 0
    # Residuals of 1 and -1 against a spread of 14.
    assert r_squared(truths, truths + np.array([1, 0, -1, 0])) == pytest.approx(1 - 2 / 14)
    assert np.isnan(r_squared(np.ones(3), np.zeros(3)))
    assert mean_absolute_error(truths, truths + np.array([1, 0, -1, 0])) == 0.5


def test_every_figure_of_the_head_is_measured(tmp_path, tiny_checkpoint):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    torch.manual_seed(0)
    OutcomeHead(4, 4, len(tiny_world_model().tokenizer), 8, 1).save_pretrained(
        folder / "outcome_head"
    )
    config = SlowLearningConfig.of(str(folder), "cpu", num_episodes=1)
    measure(tmp_path / "a.json", config, FIGURES, ["success_head_auc"])
    rows = json.loads((tmp_path / "a.json").read_text())["figures"]
    names = {"success_head_auc", "success_head_ece", "reward_head_r2", "reward_head_mae"}
    assert {row["name"] for row in rows} == names
    kinds = {(row["instructions"], row["video"], row["policy"]) for row in rows}
    assert len(kinds) == 2 * len(GROUPS)
    assert len(rows) == len(names) * len(kinds)
    assert all(row["seeds"] == [100_000] for row in rows)
