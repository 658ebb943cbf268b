"""Recipes from the command line to a checkpoint folder."""

import json
import os
import signal
import subprocess
import sys
import time

from diffusers import LatteTransformer3DModel
from sfvgen_policies.inverse_dynamics import InverseDynamics

from sfvgen_planner.cli.main import main
from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.world_model import load_world_model, tiny_world_model
from sfvgen_planner.world_model.data_facts import count_data
from sfvgen_planner.world_model.frame_table import FrameTable
from tests.training_recipes import RECIPE

UNET = "unet: {block_out_channels: [32, 32], attention_head_dim: 8}"


TRANSFORMER = "transformer: {num_layers: 1, patch_size: PATCH, num_attention_heads: 2}"


def train_transformer(store, patch_size):
    transformer = TRANSFORMER.replace("PATCH", str(patch_size))
    recipe = (store / "recipe.yaml").read_text().replace(UNET, transformer)
    (store / "transformer.yaml").write_text(recipe)
    arguments = ["--recipe", f"{store}/transformer.yaml", "--data", f"{store}/data"]
    return main(["train", *arguments, "--out", f"{store}/transformer"])


def test_a_transformer_in_the_recipe_is_trained(store, capsys):
    assert train_transformer(store, patch_size=3) == 2
    assert "a side that 48 divides" in capsys.readouterr().err
    assert not (store / "transformer").exists()
    assert train_transformer(store, patch_size=2) == 0
    model = load_world_model(store / "transformer/model")
    assert isinstance(model.unet, LatteTransformer3DModel)


def test_sfvgen_train_ends_in_a_checkpoint_that_loads(store):
    arguments = ["--recipe", f"{store}/recipe.yaml", "--data", f"{store}/data"]
    assert main(["train", *arguments, "--out", f"{store}/run"]) == 0
    model = load_world_model(f"{store}/run/model")
    assert model.config.env_id == "sfvgen/TabletopReturn-v0"
    assert model.config.action_low == [-1.0] * 4
    num_steps = sum(EpisodeStore.open(store / "data").num_steps)
    assert model.config.data_steps == num_steps
    count_data(model, EpisodeStore.open(store / "data"))
    assert model.config.data_steps == 2 * num_steps
    foreign = tiny_world_model()
    count_data(foreign, EpisodeStore.open(store / "data"))
    assert foreign.config.data_steps is None
    card = (store / "run/model/README.md").read_text()
    assert "library_name: diffusers" in card
    assert f"{num_steps:,} steps" in card
    assert "`inverse_dynamics`" in card
    InverseDynamics.from_pretrained(f"{store}/run/model/inverse_dynamics")
    losses = [json.loads(line) for line in (store / "run/world_model/metrics.jsonl").open()]
    assert losses[-1]["step"] == 6


def test_a_finished_run_is_not_begun_anew(store, monkeypatch):
    """The same command again writes the model again, and encodes nothing."""
    arguments = ["--recipe", f"{store}/recipe.yaml", "--data", f"{store}/data"]
    command = ["train", *arguments, "--out", f"{store}/finished"]
    assert main(command) == 0
    weights = (store / "finished/model/unet/diffusion_pytorch_model.safetensors").read_bytes()
    monkeypatch.setattr(FrameTable, "encoded", None)
    assert main(command) == 0
    again = store / "finished/model/unet/diffusion_pytorch_model.safetensors"
    assert again.read_bytes() == weights


def test_ctrl_c_leaves_a_run_that_the_same_command_resumes(store, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("STEPS", "100000"))
    command = [sys.executable, "-m", "sfvgen_planner", "train", "--recipe"]
    command += [f"{tmp_path}/recipe.yaml", "--data", f"{store}/data", "--out", f"{tmp_path}/run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("world_model/checkpoint-*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from here: sfvgen train" in errors
    reached = max(
        json.loads(path.read_text())["step"]
        for path in (tmp_path / "run").glob("world_model/checkpoint-*/state.json")
    )
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("STEPS", str(reached + 3)))
    finished = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "run/model/model_index.json").is_file()
    # Nothing was trained twice: the loop began where the interrupted one had stopped.
    assert f"| {reached}/{reached + 3}" in finished.stderr
