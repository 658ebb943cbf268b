"""What each stage of a recipe is trained on."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sfvgen_planner.cli.main import main
from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.world_model import stages
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.heads import load_heads
from tests.training_recipes import OUTCOME_HEAD, RECIPE, TEMPORAL_DISTANCE


def test_the_outcome_head_is_trained_and_calibrated_on_an_episode_that_it_never_saw(
    store, tmp_path, monkeypatch
):
    tables = []

    def spied(function, *args):
        tables.extend(arg for arg in args if isinstance(arg, FrameTable))
        return function(*args)

    for name in ("outcome_batches", "calibrate"):
        monkeypatch.setattr(stages, name, partial(spied, getattr(stages, name)))
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("STEPS", "1") + OUTCOME_HEAD)
    arguments = ["--recipe", f"{tmp_path}/recipe.yaml", "--data", f"{store}/data"]
    assert main(["train", *arguments, "--out", f"{tmp_path}/run"]) == 0
    num_steps = EpisodeStore.open(store / "data").num_steps
    assert [len(table.frames) for table in tables] == [sum(num_steps[:2]) + 2, num_steps[2] + 1]
    head = load_heads(tmp_path / "run/model").outcome_head
    assert head is not None
    assert head.config.latent_side == 4
    rewards = np.concatenate([episode.rewards for episode in EpisodeStore.open(store / "data")][:2])
    assert head.config.reward_scale == pytest.approx(rewards.std(ddof=1), rel=1e-4)
    assert (head.config.temperature, head.config.bias) != (1.0, 0.0)
    # The expert's cubes reach their places, which ends these episodes.
    assert head.config.success_ends


def test_the_temporal_distance_is_trained_and_resumes_exactly(store, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("STEPS", "1") + TEMPORAL_DISTANCE)
    arguments = ["--recipe", f"{tmp_path}/recipe.yaml", "--data", f"{store}/data"]
    command = ["train", *arguments, "--out", f"{tmp_path}/run"]
    assert main(command) == 0
    head = load_heads(tmp_path / "run/model").temporal_distance
    assert head is not None
    assert (head.config.latent_channels, head.config.latent_side) == (4, 4)
    assert head.config.max_frames == 10
    manifest = json.loads((tmp_path / "run/model/manifest.json").read_text())
    weights = "temporal_distance/diffusion_pytorch_model.safetensors"
    assert weights in manifest["files"]
    # A crash after half of the steps.
    whole = (tmp_path / "run/model" / weights).read_bytes()
    checkpoints = sorted((tmp_path / "run/temporal_distance").glob("checkpoint-*"))
    assert len(checkpoints) == 2
    shutil.rmtree(checkpoints[-1])
    shutil.rmtree(tmp_path / "run/model")
    assert main(command) == 0
    assert (tmp_path / "run/model" / weights).read_bytes() == whole


def test_held_out_episodes_are_measured_and_never_trained_on(store, tmp_path, monkeypatch):
    tables = []

    def spied(batches, table, *args):
        tables.append(table)
        return batches(table, *args)

    for name in ("frame_batches", "slow_batches", "pair_batches"):
        monkeypatch.setattr(stages, name, partial(spied, getattr(stages, name)))
    recipe = RECIPE.replace("STEPS", "5").replace("world_model:", "world_model:\n  eval_every: 2")
    (tmp_path / "recipe.yaml").write_text(recipe)
    arguments = ["--recipe", f"{tmp_path}/recipe.yaml", "--data", f"{store}/data"]
    assert main(["train", *arguments, "--out", f"{tmp_path}/run"]) == 0
    num_steps = EpisodeStore.open(store / "data").num_steps
    assert [len(table.frames) for table in tables] == [sum(num_steps[:2]) + 2] * 3
    folder = tmp_path / "run/world_model"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if line["held_out_loss"] > 0] == [2, 4, 5]
    events = EventAccumulator(str(folder))
    events.Reload()
    for name in ("imagined_with_actions", "imagined_from_language"):
        assert [(e.step, e.width, e.height) for e in events.Images(name)][-1] == (5, 12 * 64, 128)
