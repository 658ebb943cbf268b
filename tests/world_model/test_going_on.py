"""Training that goes on from a checkpoint."""

import json
import shutil
from functools import partial

import pytest
import torch
import yaml
from diffusers import DDIMScheduler
from sfvgen_policies.inverse_dynamics import InverseDynamics

from sfvgen_planner.cli.main import main
from sfvgen_planner.world_model import going_on, load_world_model, stages, tiny_world_model
from sfvgen_planner.world_model.gradient_checkpointing import enable_gradient_checkpointing
from sfvgen_planner.world_model.heads import load_heads
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from sfvgen_planner.world_model.recipe import WorldModelRecipe
from sfvgen_planner.world_model.shipped import checkpoint_folder
from sfvgen_planner.world_model.slow_learning import build_scheduler
from sfvgen_planner.world_model.temporal_distance import TemporalDistance
from tests.training_recipes import TEMPORAL_DISTANCE

FINETUNE = """
name: tiny
mixed_precision: "no"
data: {sources: [{env_id: sfvgen/TabletopReturn-v0, policy: expert, episodes: 3}]}
autoencoder:
  decoder_only: true
  optimisation: {steps: 2, batch_size: 4, learning_rate: 1.0e-2}
"""


def test_going_on_from_a_checkpoint_changes_only_the_recipe_s_stages(store, tiny_checkpoint):
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
    before = load_world_model(tiny_checkpoint)
    before.register_modules(scheduler=DDIMScheduler())
    before.save_pretrained(store / "noise")
    shutil.copytree(tiny_checkpoint / "inverse_dynamics", store / "noise/inverse_dynamics")
    switched = []

    def switch(unet):
        switched.append(unet)
        enable_gradient_checkpointing(unet)

    monkeypatch.setattr(stages, "enable_gradient_checkpointing", switch)
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

    monkeypatch.setattr(stages, "slow_batches", partial(spied, stages.slow_batches))
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


@pytest.mark.parametrize(("asked", "kept"), [({}, 12.0), ({"shift": 2.0}, 2.0)])
def test_the_noise_schedule_is_the_models_unless_another_is_asked_for(asked, kept):
    model = tiny_world_model()
    model.register_modules(scheduler=build_scheduler("flow", shift=12.0))
    optimisation = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    recipe = WorldModelRecipe(optimisation=optimisation, **asked)
    assert going_on.going_on(recipe, model).shift == kept


def test_going_on_with_other_data_is_refused(store, tmp_path, capsys):
    (tmp_path / "finetune.yaml").write_text(FINETUNE)
    arguments = ["--recipe", f"{tmp_path}/finetune.yaml", "--data", f"{store}/data"]
    arguments += ["--out", f"{tmp_path}/run", "--init-from"]
    for sizes, frame_skip, words in (
        ({"image_size": 32}, 1, "32x32"),
        ({"action_size": 2}, 1, "model has 2"),
        ({}, 5, "frames are 5 apart"),
    ):
        folder = tmp_path / words.replace(" ", "")
        model = tiny_world_model(**sizes)
        model.register_to_config(frame_skip=frame_skip)
        model.save_pretrained(folder)
        InverseDynamics(block_out_channels=(8, 8)).save_pretrained(folder / "inverse_dynamics")
        assert main(["train", *arguments, str(folder)]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_training_goes_on_from_a_model_by_its_name(store, tmp_path, capsys, monkeypatch):
    given = []
    monkeypatch.setattr(going_on, "load_heads", lambda folder: given.append(folder) or 1 / 0)
    arguments = ["train", "--recipe", f"{store}/recipe.yaml", "--data", f"{store}/data"]
    arguments += ["--out", f"{tmp_path}/run", "--init-from"]
    with pytest.raises(ZeroDivisionError):
        main([*arguments, "tabletop"])
    assert given == [checkpoint_folder("tabletop")]
    assert main([*arguments, "nothing"]) == 2
    assert "no model called nothing" in capsys.readouterr().err
