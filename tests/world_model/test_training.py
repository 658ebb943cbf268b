"""Recipes from the command line to a checkpoint folder."""

import json
import shutil
import signal

import pytest
from diffusers import LatteTransformer3DModel
from sfvgen_policies.inverse_dynamics import InverseDynamics

from sfvgen_planner.cli.main import main
from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.world_model import load_world_model, tiny_world_model
from sfvgen_planner.world_model.data_facts import count_data
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.slow_learning import SlowObjective
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


@pytest.fixture(scope="module")
def finished(store):
    """The command of a run that it has finished."""
    arguments = ["--recipe", f"{store}/recipe.yaml", "--data", f"{store}/data"]
    command = ["train", *arguments, "--out", f"{store}/run"]
    assert main(command) == 0
    return command


def test_sfvgen_train_ends_in_a_checkpoint_that_loads(store, finished):
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


def test_a_finished_run_is_not_begun_anew(store, finished, monkeypatch):
    """The same command again leaves the model as it is, or writes it again and encodes nothing."""
    model = store / "run/model"
    weights = (model / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    card = (model / "README.md").read_text()
    (model / "README.md").write_text("my own words")
    monkeypatch.setattr(FrameTable, "encoded", None)
    assert main(finished) == 0
    assert (model / "README.md").read_text() == "my own words"
    shutil.rmtree(model)
    assert main(finished) == 0
    assert (model / "unet/diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert (model / "README.md").read_text() == card


def test_more_steps_replace_the_model_even_after_a_kill(store, finished, tmp_path, monkeypatch):
    command = ["train", "--recipe", f"{store}/recipe.yaml", "--data", f"{store}/data"]
    command += ["--out", str(shutil.copytree(store / "run", tmp_path / "run")), "--set"]
    command += ["world_model.optimisation.steps=7"]
    weights = tmp_path / "run/model/unet/diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    with monkeypatch.context() as patch:
        # Killed after the last step, before the model is written.
        patch.setattr("sfvgen_planner.world_model.training.save_checkpoint", None)
        with pytest.raises(TypeError):
            main(command)
    assert weights.read_bytes() == before
    assert main(command) == 0
    assert weights.read_bytes() != before


def test_ctrl_c_leaves_a_run_that_the_same_command_resumes(store, tmp_path, monkeypatch, capsys):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("STEPS", "10"))
    command = ["train", "--recipe", f"{tmp_path}/recipe.yaml", "--data", f"{store}/data"]
    command += ["--out", f"{tmp_path}/run"]
    calls, forward = [], SlowObjective.forward

    def interrupted(objective, *fields):
        calls.append("step")
        if len(calls) == 7:
            signal.raise_signal(signal.SIGINT)
        return forward(objective, *fields)

    monkeypatch.setattr(SlowObjective, "forward", interrupted)
    assert main(command) == 130
    assert "goes on from here: sfvgen train" in capsys.readouterr().err
    checkpoints = (tmp_path / "run").glob("world_model/checkpoint-*/state.json")
    assert max(json.loads(path.read_text())["step"] for path in checkpoints) == 7
    assert main(command) == 0
    assert (tmp_path / "run/model/model_index.json").is_file()
    # Nothing was trained twice: the loop began where the interrupted one had stopped.
    assert "| 7/10" in capsys.readouterr().err
    assert len(calls) == 10


def test_an_autoencoder_is_not_trained_on_beneath_what_reads_its_latents(store, finished, capsys):
    weights = (store / "run/model/vae/diffusion_pytorch_model.safetensors").read_bytes()
    assert main([*finished, "--set", "autoencoder.optimisation.steps=5"]) == 2
    assert "latents of an autoencoder of 4 steps" in capsys.readouterr().err
    assert (store / "run/model/vae/diffusion_pytorch_model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("folder", "kind"), [("run/model", "a model"), ("data", "an episode store")]
)
def test_no_run_begins_in_a_folder_of_another_kind(store, finished, capsys, folder, kind):
    files = set((store / folder).rglob("*"))
    assert main([*finished[:-1], f"{store}/{folder}"]) == 2
    assert f"is {kind}; give --out a folder of its own" in capsys.readouterr().err
    assert set((store / folder).rglob("*")) == files
