import json
import shutil
import signal
from dataclasses import asdict

import pytest
import torch
import yaml

from sfvgen_planner.cli.main import main
from sfvgen_planner.memory import EpisodicMemory, trained_config
from sfvgen_planner.memory.adapter_files import SLOW_WEIGHTS
from sfvgen_planner.memory.loop_recipe import LoopRecipe
from sfvgen_planner.memory.slow_fast import LoopBatches
from sfvgen_planner.world_model import load_world_model

RECIPE = """
name: tiny
mixed_precision: "no"
eval_every: 2
data:
  sources:
    - env_id: sfvgen/TabletopReturn-v0
      policy: expert
      episodes: 3
      env_kwargs: {level: 1, recall: first}
memory: {rank: 2, num_time_codes: 4, num_noise_draws: 1}
recalls: {"^return": 1.0}
stages:
  - max_chunks: 2
    num_memories: 2
    samples_per_memory: 1
    optimisation: {steps: 3, batch_size: 4, learning_rate: 1.0e-2}
  - max_chunks: 1
    num_memories: 2
    samples_per_memory: 1
    second_order: true
    optimisation: {steps: 2, batch_size: 4, learning_rate: 1.0e-2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    (folder / "recipe.yaml").write_text(RECIPE)
    assert main(["collect", "--recipe", f"{folder}/recipe.yaml", "--out", f"{folder}/data"]) == 0
    return folder


def frozen_text(checkpoint, folder):
    """A copy of a checkpoint whose text encoder is not to be trained."""
    shutil.copytree(checkpoint, folder)
    model = load_world_model(checkpoint)
    model.register_to_config(text_frozen=True)
    model.save_pretrained(folder)
    return folder


def loop(folder, checkpoint, out, recipe="recipe.yaml"):
    arguments = ["--recipe", f"{folder}/{recipe}", "--data", f"{folder}/data"]
    return main(["loop", *arguments, "--init-from", str(checkpoint), "--out", f"{folder}/{out}"])


@pytest.fixture(scope="module")
def looped(folder, tiny_checkpoint):
    assert loop(folder, tiny_checkpoint, "run") == 0
    return folder / "run" / "model"


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_text_encoder_stays_as_it_is(folder, tiny_checkpoint, tmp_path, frozen):
    start = frozen_text(tiny_checkpoint, tmp_path / "start") if frozen else tiny_checkpoint
    stage = "{max_chunks: 1, num_memories: 1, samples_per_memory: 1, optimisation: "
    stage += "{steps: 2, batch_size: 2, learning_rate: 0.01, warmup_steps: 0, ema_decay: 0}}"
    arguments = ["--recipe", f"{folder}/recipe.yaml", "--data", f"{folder}/data", "--init-from"]
    arguments += [str(start), "--out", f"{tmp_path}/run", "--set", f"stages=[{stage}]"]
    assert main(["loop", *arguments, "eval_every=0"]) == 0
    before, after = load_world_model(start), load_world_model(tmp_path / "run/model")
    assert after.config.text_frozen == frozen
    old, new = before.text_encoder.state_dict(), after.text_encoder.state_dict()
    assert (
        all(torch.equal(new[name], value.half().float()) for name, value in old.items()) == frozen
    )


def tensors(checkpoint):
    model = load_world_model(checkpoint)
    memory = EpisodicMemory.from_pretrained(model, checkpoint)
    state = memory.state()
    # A checksum is another one as soon as a bit is.
    del state[SLOW_WEIGHTS]
    return {name: value.clone() for name, value in (model.unet.state_dict() | state).items()}


def test_the_loop_ends_in_a_checkpoint_whose_memory_is_ours(folder, looped):
    model = load_world_model(looped)
    memory = EpisodicMemory.from_pretrained(model)
    assert memory.config == LoopRecipe.load(folder / "recipe.yaml").memory_config
    assert any(value.any() for name, value in memory.state().items() if ".lora_B." in name)
    for stage in (0, 1):
        lines = (folder / f"run/stage_{stage}/metrics.jsonl").read_text().splitlines()
        names = json.loads(lines[-1]).keys()
        assert {"loss", "held_out_with_memory", "held_out_without_memory"} <= names
    manifest = json.loads((looped / "manifest.json").read_text())["files"]
    assert "memory/adapter_model.safetensors" in manifest
    assert "| `memory` |" in (looped / "README.md").read_text()


def test_an_interrupted_loop_goes_on_as_if_it_had_not_been(
    folder, looped, tiny_checkpoint, monkeypatch, capsys
):
    calls = 0
    draw = LoopBatches.__call__

    def interrupted(self, generator):
        nonlocal calls
        calls += 1
        if calls == 1:
            assert loop(folder, tiny_checkpoint, "parts") == 2
            assert "another run is training in" in capsys.readouterr().err
        if calls == 4:
            signal.raise_signal(signal.SIGINT)
        return draw(self, generator)

    monkeypatch.setattr(LoopBatches, "__call__", interrupted)
    assert loop(folder, tiny_checkpoint, "parts") == 130
    assert not (folder / "parts/model").exists()
    assert loop(folder, tiny_checkpoint, "parts") == 0
    whole, parts = tensors(looped), tensors(folder / "parts/model")
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    (folder / "parts/model/README.md").write_text("my own words")
    assert loop(folder, tiny_checkpoint, "parts") == 0
    assert (folder / "parts/model/README.md").read_text() == "my own words"


@pytest.mark.parametrize(
    "settings",
    [
        "num_noise_draws: 1",
        "num_noise_draws: 2, learning_rate: 0.02",
        "num_noise_draws: 1, instruction_code: true",
        "num_noise_draws: 1, rank: 3, num_time_codes: 5",
    ],
)
def test_a_further_loop_goes_on_with_the_trained_adapters(folder, looped, settings):
    """How writes learn may differ; what is new in the adapters leaves what is trained in place."""
    first = RECIPE.split("  - max_chunks: 1")[0].replace("num_noise_draws: 1", settings)
    for usual, quick in (("1.0e-2", "1.0e-9"), ("steps: 3", "steps: 1"), ("eval_every: 2", "")):
        first = first.replace(usual, quick)
    (folder / "further.yaml").write_text(first)
    out = f"further_{len(settings)}"
    assert loop(folder, looped, out, "further.yaml") == 0
    before, after = tensors(looped), tensors(folder / out / "model")
    for name, value in before.items():
        kept = after[name][tuple(map(slice, value.shape))]
        assert torch.allclose(kept.float(), value.float(), atol=1e-3)
    (wanted,) = yaml.safe_load(f"[{{{settings}}}]")
    config = asdict(trained_config(folder / out / "model"))
    assert {name: config[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["stages.0.max_chunks=1"], "stages.0.max_chunks was 2 and is now 1"),
        (["memory.learning_rate=1"], "memory.learning_rate was unset and is now 1"),
        ([], "the model of --init-from is another"),
    ],
)
def test_another_loop_does_not_go_on_in_a_folder(
    folder, looped, tiny_checkpoint, tmp_path, capsys, change, words
):
    checkpoint = tiny_checkpoint if change else shutil.copytree(looped, tmp_path / "other")
    arguments = ["--recipe", f"{folder}/recipe.yaml", "--data", f"{folder}/data", "--out"]
    arguments += [f"{folder}/run", "--init-from", str(checkpoint), "--set", *change, "name=loop"]
    assert main(["loop", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_further_loop_of_another_memory_is_refused(folder, looped, capsys):
    first = RECIPE.split("  - max_chunks: 1")[0]
    (folder / "other.yaml").write_text(first.replace("rank: 2", "rank: 1"))
    assert loop(folder, looped, "other", "other.yaml") == 2
    assert "other settings than the recipe" in capsys.readouterr().err


def test_a_model_can_be_trained_for_another_context_instead(folder, looped):
    """From a checkpoint with a memory too: the outcome has none."""
    other = "\n".join(
        line for line in RECIPE.splitlines() if not line.startswith(("memory:", "eval_every:"))
    )
    (folder / "long.yaml").write_text(f"variant: none\ncontext: long_context\n{other}")
    assert loop(folder, looped, "long", "long.yaml") == 0
    final = folder / "long/model"
    assert not (final / "memory").exists()
    before, after = (load_world_model(path).unet.state_dict() for path in (looped, final))
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize(
    ("stage", "is_kept"),
    [
        ("autoencoder: {decoder_only: true, OPTIMISATION}", True),
        ("inverse_dynamics: {OPTIMISATION}", True),
        ("autoencoder: {OPTIMISATION}", False),
        ("world_model: {OPTIMISATION}", False),
    ],
)
def test_a_stage_keeps_the_memory_of_weights_that_it_leaves_alone(
    folder, looped, tmp_path, caplog, stage, is_kept
):
    settings = "optimisation: {steps: 1, batch_size: 2, learning_rate: 1.0e-2}"
    data = RECIPE[RECIPE.index("data:") : RECIPE.index("memory:")]
    recipe = f"name: tiny\nmixed_precision: 'no'\n{data}{stage}\n"
    (tmp_path / "recipe.yaml").write_text(recipe.replace("OPTIMISATION", settings))
    arguments = ["--recipe", f"{tmp_path}/recipe.yaml", "--data", f"{folder}/data"]
    arguments += ["--out", f"{tmp_path}/run", "--init-from", str(looped)]
    assert main(["train", *arguments]) == 0
    final = tmp_path / "run/model"
    assert (final / "memory").exists() == is_kept
    assert ("does not fit the weights" in caplog.text) != is_kept
    if is_kept:
        before, after = tensors(looped), tensors(final)
        assert all(torch.equal(after[name], value) for name, value in before.items())
        manifest = json.loads((final / "manifest.json").read_text())["files"]
        assert "memory/adapter_model.safetensors" in manifest


def test_a_single_write_of_second_order_trains_as_second_order_does(folder, tiny_checkpoint):
    """The memories have one chunk each."""
    begin, end = RECIPE.replace("eval_every: 2", "eval_every: 0").split("stages:")
    last = end[end.rindex("  - max_chunks") :].replace("steps: 2", "steps: 1")
    found = []
    for name, setting in (("full", "second_order: true"), ("some", "second_order_writes: 2")):
        text = f"{begin}stages:\n{last.replace('second_order: true', setting)}"
        (folder / f"{name}.yaml").write_text(text)
        assert loop(folder, tiny_checkpoint, name, f"{name}.yaml") == 0
        found.append(tensors(folder / name / "model"))
    for name, value in found[0].items():
        assert torch.allclose(found[1][name].float(), value.float(), atol=1e-3), name


@pytest.mark.parametrize("setting", ["stored_batches: 2", "second_order_writes: 2"])
def test_what_needs_a_whole_model_is_refused_under_fsdp(
    setting, folder, tiny_checkpoint, monkeypatch, capsys
):
    monkeypatch.setattr("sfvgen_planner.memory.loop.is_sharding", lambda accelerator: True)
    stored = RECIPE.replace("second_order: true", setting)
    (folder / "stored.yaml").write_text(stored)
    assert loop(folder, tiny_checkpoint, "stored", "stored.yaml") == 2
    assert "train with DDP" in capsys.readouterr().err


def test_a_missing_model_is_told(folder, tiny_checkpoint, capsys):
    assert loop(folder, folder / "nowhere", "nothing") == 2
    assert "no model called" in capsys.readouterr().err
    copy = folder / "broken"
    shutil.copytree(tiny_checkpoint, copy)
    shutil.rmtree(copy / "inverse_dynamics")
    assert loop(folder, copy, "nothing") == 2
    assert "inverse" in capsys.readouterr().err
