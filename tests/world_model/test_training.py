"""Recipes from the command line to a checkpoint folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import yaml
from diffusers import DDIMScheduler, LatteTransformer3DModel

from sfvgen_planner.world_model.gradient_checkpointing import enable_gradient_checkpointing

RECIPE = """
name: tiny
mixed_precision: "no"
data:
  sources:
    - {env_id: sfvgen/TabletopReturn-v0, policy: expert, episodes: 3,
       env_kwargs: {level: 1, recall: none}}
autoencoder:
  block_out_channels: [8, 8, 8, 8, 8]
  latent_channels: 4
  norm_num_groups: 4
  optimisation: {steps: 4, batch_size: 4, learning_rate: 1.0e-3}
world_model:
  unet: {block_out_channels: [32, 32], attention_head_dim: 8}
  text: {hidden_size: 16, num_layers: 1, num_heads: 2}
  optimisation: {steps: STEPS, batch_size: 2, learning_rate: 1.0e-3, checkpoint_every: 5}
inverse_dynamics:
  block_out_channels: [8, 8, 8, 8]
  hidden_size: 16
  optimisation: {steps: 4, batch_size: 4, learning_rate: 1.0e-3}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    from sfvgen_planner.cli.main import main

    folder = tmp_path_factory.mktemp("train")
    (folder / "recipe.yaml").write_text(RECIPE.replace("STEPS", "6"))
    assert main(["collect", "--recipe", f"{folder}/recipe.yaml", "--out", f"{folder}/data"]) == 0
    return folder


UNET = "unet: {block_out_channels: [32, 32], attention_head_dim: 8}"
TRANSFORMER = "transformer: {num_layers: 1, patch_size: PATCH, num_attention_heads: 2}"


def train_transformer(store, patch_size):
    from sfvgen_planner.cli.main import main

    transformer = TRANSFORMER.replace("PATCH", str(patch_size))
    recipe = (store / "recipe.yaml").read_text().replace(UNET, transformer)
    (store / "transformer.yaml").write_text(recipe)
    arguments = ["--recipe", f"{store}/transformer.yaml", "--data", f"{store}/data"]
    return main(["train", *arguments, "--out", f"{store}/transformer"])


def test_a_transformer_in_the_recipe_is_trained(store, capsys):
    from sfvgen_planner.world_model import load_world_model

    assert train_transformer(store, patch_size=3) == 2
    assert "a side that 48 divides" in capsys.readouterr().err
    assert not (store / "transformer").exists()
    assert train_transformer(store, patch_size=2) == 0
    model = load_world_model(store / "transformer/model")
    assert isinstance(model.unet, LatteTransformer3DModel)


def test_sfvgen_train_ends_in_a_checkpoint_that_loads(store):
    from sfvgen_policies.inverse_dynamics import InverseDynamics

    from sfvgen_planner.cli.main import main
    from sfvgen_planner.data import EpisodeStore
    from sfvgen_planner.world_model import load_world_model, tiny_world_model
    from sfvgen_planner.world_model.training import count_data

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
    from sfvgen_planner.cli.main import main
    from sfvgen_planner.world_model.frame_table import FrameTable

    arguments = ["--recipe", f"{store}/recipe.yaml", "--data", f"{store}/data"]
    command = ["train", *arguments, "--out", f"{store}/finished"]
    assert main(command) == 0
    weights = (store / "finished/model/unet/diffusion_pytorch_model.safetensors").read_bytes()
    monkeypatch.setattr(FrameTable, "encoded", None)
    assert main(command) == 0
    again = store / "finished/model/unet/diffusion_pytorch_model.safetensors"
    assert again.read_bytes() == weights


def test_another_run_is_not_gone_on_with(store, tmp_path, capsys):
    from sfvgen_planner.cli.main import main

    def run(*changes, data=store / "data"):
        arguments = ["--recipe", f"{store}/recipe.yaml", "--data", str(data), "--out"]
        return main(["train", *arguments, f"{tmp_path}/run", "--set", *changes])

    few = [f"{stage}.optimisation.steps=1" for stage in ("autoencoder", "inverse_dynamics")]
    few.append("world_model.optimisation.steps=1")
    optimisation = "world_model.optimisation"
    assert run(*few) == 0
    record = (tmp_path / "run/run.json").read_text()
    # What a run may be gone on with.
    longer = [*few, f"{optimisation}.steps=2", f"{optimisation}.learning_rate=0.0005", "name=other"]
    assert run(*longer, f"{optimisation}.checkpoint_every=1") == 0
    assert (tmp_path / "run/run.json").read_text() == record
    (tmp_path / "other.yaml").write_text(RECIPE.replace("episodes: 3", "episodes: 1"))
    collect = ["collect", "--recipe", f"{tmp_path}/other.yaml", "--out", f"{tmp_path}/data"]
    assert main(collect) == 0
    capsys.readouterr()
    for changes, data, words in (
        ([f"{optimisation}.batch_size=3"], "data", f"{optimisation}.batch_size was 2 and is now 3"),
        (["seed=1"], "data", "seed was unset and is now 1"),
        ([], tmp_path / "data", "the episodes of --data are others"),
    ):
        assert run(*longer, *changes, data=store / data) == 2
        error = capsys.readouterr().err
        assert "holds another run" in error
        assert words in error
    # A folder from before runs were recorded, and one that another run never got far in.
    (tmp_path / "run/run.json").unlink()
    assert run(*longer, "seed=1") == 0
    for stage in ("autoencoder", "world_model", "inverse_dynamics"):
        shutil.rmtree(tmp_path / "run" / stage)
    assert run(*longer) == 0
    assert (tmp_path / "run/run.json").read_text() == record
    (tmp_path / "run/run.json").write_text("[]")
    assert run(*longer) == 2
    assert "run.json can't be read" in capsys.readouterr().err


OUTCOME_HEAD = """
outcome_head:
  hidden_size: 16
  num_blocks: 1
  optimisation: {steps: 2, batch_size: 4, learning_rate: 1.0e-3}
"""


def test_the_outcome_head_is_trained_and_calibrated_on_an_episode_that_it_never_saw(
    store, tmp_path, monkeypatch
):
    from sfvgen_planner.cli.main import main
    from sfvgen_planner.data import EpisodeStore
    from sfvgen_planner.world_model import training
    from sfvgen_planner.world_model.heads import load_heads

    tables = []

    def spied(function, *args):
        tables.extend(arg for arg in args if isinstance(arg, training.FrameTable))
        return function(*args)

    for name in ("outcome_batches", "calibrate"):
        monkeypatch.setattr(training, name, partial(spied, getattr(training, name)))
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


def test_data_from_before_successes_were_recorded_is_refused_before_any_work(
    store, tmp_path, capsys
):
    from sfvgen_planner.cli.main import main

    shutil.copytree(store / "data", tmp_path / "data")
    index = tmp_path / "data/episodes.jsonl"
    lines = [json.loads(line) | {"successes": None} for line in index.read_text().splitlines()]
    index.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("STEPS", "1") + OUTCOME_HEAD)
    arguments = ["--recipe", f"{tmp_path}/recipe.yaml", "--data", f"{tmp_path}/data"]
    assert main(["train", *arguments, "--out", f"{tmp_path}/run"]) == 2
    assert "info['success']" in capsys.readouterr().err
    assert not list((tmp_path / "run").iterdir())


TEMPORAL_DISTANCE = """
temporal_distance:
  hidden_size: 16
  num_blocks: 1
  max_frames: 10
  optimisation: {steps: 4, batch_size: 4, learning_rate: 1.0e-3, checkpoint_every: 2}
"""


def test_the_temporal_distance_is_trained_and_resumes_exactly(store, tmp_path):
    from sfvgen_planner.cli.main import main
    from sfvgen_planner.world_model.heads import load_heads

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


def test_episodes_shorter_than_the_temporal_distance_are_told_before_any_work(
    store, tmp_path, capsys
):
    from sfvgen_planner.cli.main import main

    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("STEPS", "1") + TEMPORAL_DISTANCE)
    arguments = ["--recipe", f"{tmp_path}/recipe.yaml", "--data", f"{store}/data"]
    arguments += ["--out", f"{tmp_path}/run", "--set", "temporal_distance.max_frames=1000"]
    assert main(["train", *arguments]) == 2
    assert "lower temporal_distance.max_frames" in capsys.readouterr().err
    assert not (tmp_path / "run/autoencoder").exists()


def test_held_out_episodes_are_measured_and_never_trained_on(store, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from sfvgen_planner.cli.main import main
    from sfvgen_planner.data import EpisodeStore
    from sfvgen_planner.world_model import training

    tables = []

    def spied(batches, table, *args):
        tables.append(table)
        return batches(table, *args)

    for name in ("frame_batches", "slow_batches", "pair_batches"):
        monkeypatch.setattr(training, name, partial(spied, getattr(training, name)))
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


def test_holding_out_the_only_episode_is_refused(store, tmp_path, capsys):
    from sfvgen_planner.cli.main import main

    recipe = RECIPE.replace("STEPS", "5").replace("world_model:", "world_model:\n  eval_every: 2")
    (tmp_path / "recipe.yaml").write_text(recipe.replace("episodes: 3", "episodes: 1"))
    arguments = ["--recipe", f"{tmp_path}/recipe.yaml"]
    assert main(["collect", *arguments, "--out", f"{tmp_path}/data"]) == 0
    arguments += ["--data", f"{tmp_path}/data", "--out", f"{tmp_path}/run"]
    assert main(["train", *arguments]) == 2
    assert "collect more episodes" in capsys.readouterr().err


FINETUNE = """
name: tiny
mixed_precision: "no"
data: {sources: [{env_id: sfvgen/TabletopReturn-v0, policy: expert, episodes: 3}]}
autoencoder:
  decoder_only: true
  optimisation: {steps: 2, batch_size: 4, learning_rate: 1.0e-2}
"""


def test_going_on_from_a_checkpoint_changes_only_the_recipe_s_stages(store, tiny_checkpoint):
    from sfvgen_planner.cli.main import main
    from sfvgen_planner.world_model import load_world_model

    (store / "finetune.yaml").write_text(FINETUNE)
    arguments = ["--recipe", f"{store}/finetune.yaml", "--data", f"{store}/data"]
    arguments += ["--out", f"{store}/finetuned"]
    assert main(["train", *arguments]) == 2
    assert main(["train", *arguments, "--init-from", str(tiny_checkpoint)]) == 0
    before, after = load_world_model(tiny_checkpoint), load_world_model(store / "finetuned/model")

    def changed(name):
        old, new = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        # The checkpoint is written in half precision.
        return {key for key in old if (old[key].half() != new[key].half()).any()}

    assert not changed("unet")
    assert not changed("text_encoder")
    assert changed("vae")
    assert all(name.startswith(("decoder", "post_quant_conv")) for name in changed("vae"))
    # A folder that travels tells nobody where it was made.
    configs = [path.read_text() for path in (store / "finetuned/model").rglob("*.json")]
    assert not any(str(tiny_checkpoint) in text for text in configs)


def test_heads_stay_with_the_latents_that_they_read(store, tmp_path, tiny_checkpoint, caplog):
    import torch

    from sfvgen_planner.cli.main import main
    from sfvgen_planner.world_model import tiny_world_model
    from sfvgen_planner.world_model.heads import load_heads
    from sfvgen_planner.world_model.outcome_head import OutcomeHead
    from sfvgen_planner.world_model.temporal_distance import TemporalDistance

    start = shutil.copytree(tiny_checkpoint, tmp_path / "start")
    outcome_head = OutcomeHead(4, 4, len(tiny_world_model().tokenizer), 8, 1)
    outcome_head.half().save_pretrained(start / "outcome_head")
    distance = TemporalDistance(4, 4, 8, 1, max_frames=10)
    distance.half().save_pretrained(start / "temporal_distance")
    (tmp_path / "recipe.yaml").write_text(FINETUNE)

    def heads(out, *changes):
        arguments = ["--recipe", f"{tmp_path}/recipe.yaml", "--data", f"{store}/data"]
        arguments += ["--init-from", str(start), "--out", f"{tmp_path}/{out}"]
        assert main(["train", *arguments, "--set", "seed=1", *changes]) == 0
        return load_heads(tmp_path / out / "model")

    kept = heads("decoder").temporal_distance.state_dict()
    assert all(
        torch.equal(kept[key], value.float()) for key, value in distance.state_dict().items()
    )
    assert not caplog.records
    encoder = ["autoencoder.decoder_only=false"]
    further = yaml.safe_load(TEMPORAL_DISTANCE)["temporal_distance"]
    trained = heads("encoder", *encoder, f"temporal_distance={json.dumps(further)}")
    assert trained.outcome_head is None
    assert "the outcome head does not fit the encoder" in caplog.text
    # The checkpoint's sizes count, not the recipe's.
    assert trained.temporal_distance.config.hidden_size == 8
    assert heads("neither", *encoder).temporal_distance is None


FURTHER = """
name: tiny
mixed_precision: "no"
data: {sources: [{env_id: sfvgen/TabletopReturn-v0, policy: expert, episodes: 3}]}
world_model:
  gradient_checkpointing: true
  optimisation: {steps: 2, batch_size: 2, learning_rate: 1.0e-2}
"""


def test_a_model_that_predicts_noise_goes_on_doing_so(store, tiny_checkpoint, monkeypatch):
    from sfvgen_planner.cli.main import main
    from sfvgen_planner.world_model import load_world_model, training

    before = load_world_model(tiny_checkpoint)
    before.register_modules(scheduler=DDIMScheduler())
    before.save_pretrained(store / "noise")
    shutil.copytree(tiny_checkpoint / "inverse_dynamics", store / "noise/inverse_dynamics")
    switched = []

    def switch(unet):
        switched.append(unet)
        enable_gradient_checkpointing(unet)

    monkeypatch.setattr(training, "enable_gradient_checkpointing", switch)
    (store / "further.yaml").write_text(FURTHER)
    arguments = ["--recipe", f"{store}/further.yaml", "--data", f"{store}/data"]
    arguments += ["--out", f"{store}/further", "--init-from", f"{store}/noise"]
    assert main(["train", *arguments]) == 0
    after = load_world_model(store / "further/model")
    assert isinstance(after.scheduler, DDIMScheduler)
    assert len(switched) == 1
    old, new = before.unet.state_dict(), after.unet.state_dict()
    assert old.keys() == new.keys()
    assert any((old[key].half() != new[key].half()).any() for key in old)


def test_going_on_keeps_the_models_window_and_prediction(
    store, tiny_checkpoint, tmp_path, capsys, monkeypatch
):
    from sfvgen_planner.cli.main import main
    from sfvgen_planner.world_model import load_world_model, training

    model = load_world_model(tiny_checkpoint)
    model.register_to_config(num_past_frames=2, num_future_frames=3)
    model.save_pretrained(tmp_path / "short")
    shutil.copytree(tiny_checkpoint / "inverse_dynamics", tmp_path / "short/inverse_dynamics")
    lengths = []

    def spied(batches, *args):
        draw = batches(*args)

        def told(generator):
            lengths.append(draw(generator).latents.shape[2])
            return draw(generator)

        return told

    monkeypatch.setattr(training, "slow_batches", partial(spied, training.slow_batches))
    (tmp_path / "further.yaml").write_text(FURTHER)
    arguments = ["train", "--recipe", f"{tmp_path}/further.yaml", "--data", f"{store}/data"]
    arguments += ["--out", f"{tmp_path}/run", "--init-from", f"{tmp_path}/short", "--set"]
    for change, own in (
        ("num_past_frames=4", "2"),
        ("num_future_frames=8", "3"),
        ("prediction=epsilon", "flow"),
    ):
        assert main([*arguments, f"world_model.{change}"]) == 2
        error = capsys.readouterr().err
        assert change.replace("=", ": ") in error
        assert f"go on from has {own}" in error
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "world_model.num_past_frames=2", "world_model.shift=2.0"]) == 0
    assert lengths == [5, 5]
    after = load_world_model(tmp_path / "run/model")
    assert (after.config.num_past_frames, after.config.num_future_frames) == (2, 3)
    assert after.scheduler.config.shift == 2.0


def test_going_on_with_other_data_is_refused(store, tmp_path, capsys):
    from sfvgen_planner.cli.main import main
    from sfvgen_planner.world_model import tiny_world_model

    (tmp_path / "finetune.yaml").write_text(FINETUNE)
    arguments = ["--recipe", f"{tmp_path}/finetune.yaml", "--data", f"{store}/data"]
    arguments += ["--out", f"{tmp_path}/run", "--init-from"]
    for sizes, frame_skip, words in (
        ({"image_size": 32}, 1, "32x32"),
        ({"action_size": 2}, 1, "model has 2"),
        ({}, 5, "frames are 5 apart"),
    ):
        from sfvgen_policies.inverse_dynamics import InverseDynamics

        folder = tmp_path / words.replace(" ", "")
        model = tiny_world_model(**sizes)
        model.register_to_config(frame_skip=frame_skip)
        model.save_pretrained(folder)
        InverseDynamics(block_out_channels=(8, 8)).save_pretrained(folder / "inverse_dynamics")
        assert main(["train", *arguments, str(folder)]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("steps: 6", "steps: 0"), "world_model.optimisation.steps"),
        (("name: tiny", "nam: tiny"), "nam"),
        (("data:", "data"), "cannot read the recipe"),
    ],
)
def test_wrong_recipe_is_one_sentence(store, tmp_path, capsys, change, words):
    from sfvgen_planner.cli.main import main

    text = RECIPE.replace("STEPS", "6").replace(*change)
    (tmp_path / "recipe.yaml").write_text(text)
    arguments = ["--data", f"{store}/data", "--out", f"{tmp_path}/run"]
    assert main(["train", "--recipe", f"{tmp_path}/recipe.yaml", *arguments]) == 2
    import re

    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_too_short_episodes_are_told_before_any_work(store, tmp_path, capsys):
    from sfvgen_planner.cli.main import main

    arguments = ["--recipe", f"{store}/recipe.yaml", "--data", f"{store}/data"]
    arguments += ["--set", "world_model.num_future_frames=1000", "--out", f"{tmp_path}/run"]
    assert main(["train", *arguments]) == 2
    assert "window of 1004 frames" in capsys.readouterr().err
    assert not (tmp_path / "run/autoencoder").exists()


def test_training_goes_on_from_a_model_by_its_name(store, tmp_path, capsys, monkeypatch):
    from sfvgen_planner.cli.main import main
    from sfvgen_planner.world_model import training
    from sfvgen_planner.world_model.shipped import shipped_folder

    given = []
    monkeypatch.setattr(training, "load_heads", lambda folder: given.append(folder) or 1 / 0)
    arguments = ["train", "--recipe", f"{store}/recipe.yaml", "--data", f"{store}/data"]
    arguments += ["--out", f"{tmp_path}/run", "--init-from"]
    with pytest.raises(ZeroDivisionError):
        main([*arguments, "tabletop"])
    assert given == [shipped_folder("tabletop")]
    assert main([*arguments, "nothing"]) == 2
    assert "no model called nothing" in capsys.readouterr().err


def test_missing_recipe_and_store_are_named(store, tmp_path, capsys):
    from sfvgen_planner.cli.main import main

    recipe, data, out = f"{store}/recipe.yaml", f"{store}/data", f"{tmp_path}/run"
    assert main(["train", "--recipe", "no.yaml", "--data", data, "--out", out]) == 2
    assert "no.yaml" in capsys.readouterr().err
    assert main(["train", "--recipe", recipe, "--data", f"{tmp_path}/no", "--out", out]) == 2
    assert f"{tmp_path}/no" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_images_that_do_not_fit_the_autoencoder_are_told(store, tmp_path, capsys):
    from sfvgen_planner.cli.main import main

    arguments = ["--env", "sfvgen/TabletopReturn-v0", "--episodes", "1", "--image-size", "40"]
    arguments += ["--env-kwargs", '{"level": 1, "recall": "none"}']
    assert main(["collect", *arguments, "--out", f"{tmp_path}/data"]) == 0
    recipe, out = f"{store}/recipe.yaml", f"{tmp_path}/run"
    assert main(["train", "--recipe", recipe, "--data", f"{tmp_path}/data", "--out", out]) == 2
    assert "40x40" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_unwritable_output_is_told_before_any_work(store, tmp_path, capsys):
    from sfvgen_planner.cli.main import main

    (tmp_path / "file").write_text("")
    recipe, data = f"{store}/recipe.yaml", f"{store}/data"
    out = f"{tmp_path}/file/run"
    assert main(["train", "--recipe", recipe, "--data", data, "--out", out]) == 2
    assert "file/run" in capsys.readouterr().err
