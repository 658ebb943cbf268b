import json
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from safetensors.torch import load_file

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import load_world_model
from sfvgen_planner.world_model.sharding import prepare_plugin
from sfvgen_planner.world_model.trainer import begin_training
from tests.processes import run_on_two_processes
from tests.world_model import sharded_runs

FILES = ("model", "ema", "optimiser")
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
# A tenth of one of Adam's steps, which are a gradient's sign at first: rounding turns some.
A_TENTH_OF_A_STEP = {"rtol": 1e-2, "atol": 1e-3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharding")
    run_on_two_processes(sharded_runs.run_all, folder)
    alone(folder / "alone")
    return folder


def alone(folder):
    did = sharded_runs.run(folder, Accelerator(cpu=True, mixed_precision="no"))
    (folder / "process-0.json").write_text(json.dumps(did))


def losses(folder):
    """Of each step, over all processes' shares of the batch."""
    files = folder.glob("process-*.json")
    return np.mean([json.loads(file.read_text())["losses"] for file in files], axis=0)


def checkpoint(folder, step=6):
    files = (folder / f"checkpoint-{step:08d}/{name}.safetensors" for name in FILES)
    return {(file.stem, key): value for file in files for key, value in load_file(file).items()}


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return {
        (line["step"], key): value
        for line in lines
        for key, value in line.items()
        if key not in ("step", "samples_per_second")
    }


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], **tolerance or {"rtol": 0, "atol": 0})


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_that_share_a_batch_train_as_one_with_all_of_it(runs, name):
    """Losses, gradient norm, evaluations, weights, averages and moments."""
    np.testing.assert_allclose(losses(runs / name), losses(runs / "alone"), rtol=1e-5)
    assert metrics(runs / name) == pytest.approx(metrics(runs / "alone"), rel=1e-4)
    for step in (3, 6):
        assert_same(checkpoint(runs / name, step), checkpoint(runs / "alone", step), **CLOSE)


def test_a_sharded_run_resumed_equals_one_that_was_not(runs):
    assert np.array_equal(losses(runs / "fsdp_resumed"), losses(runs / "fsdp")[3:])
    assert_same(checkpoint(runs / "fsdp_resumed"), checkpoint(runs / "fsdp"))


def test_each_process_goes_on_from_its_own_draws(runs):
    for process in (0, 1):
        whole, resumed = (
            json.loads((runs / f"{name}/process-{process}.json").read_text())
            for name in ("walk", "walk_resumed")
        )
        assert resumed == {"losses": whole["losses"][3:], "place": whole["place"]}
    walks = load_file(runs / "walk/checkpoint-00000006/draws.safetensors")["place"]
    assert not torch.equal(*walks)


def test_draws_of_more_processes_begin_anew(runs):
    shutil.copytree(runs / "walk/checkpoint-00000003", runs / "one_walk/checkpoint-00000003")
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    resumed, alone = (
        torch.tensor(sharded_runs.run_walk(runs / name, accelerator)["place"])
        for name in ("one_walk", "alone_walk")
    )
    half = load_file(runs / "alone_walk/checkpoint-00000003/draws.safetensors")["place"][0]
    torch.testing.assert_close(resumed, alone - half)


@pytest.mark.parametrize("name", ["ddp_after_fsdp", "fsdp_after_ddp"])
def test_a_run_is_resumed_with_and_without_shards(runs, name):
    np.testing.assert_allclose(losses(runs / name), losses(runs / "alone")[3:], rtol=1e-5)
    assert_same(checkpoint(runs / name), checkpoint(runs / "alone"), **CLOSE)


def test_a_sharded_run_is_resumed_by_one_process(runs):
    shutil.copytree(runs / "fsdp/checkpoint-00000003", runs / "one/checkpoint-00000003")
    alone(runs / "one")
    np.testing.assert_allclose(losses(runs / "one"), losses(runs / "alone")[3:], rtol=1e-5)
    assert_same(checkpoint(runs / "one"), checkpoint(runs / "alone"), **CLOSE)


def test_a_sharded_run_leaves_the_whole_averages_on_every_process(runs):
    averages = load_file(runs / "fsdp/checkpoint-00000006/ema.safetensors")
    for process in (0, 1):
        left = json.loads((runs / f"fsdp/process-{process}.json").read_text())["weights"]
        for name, average in averages.items():
            assert left[name] == average.tolist()


def test_a_world_model_learns_alike_with_and_without_shards(runs):
    """Its checkpoints, and the model that one process saves afterwards."""
    ddp, fsdp = runs / "ddp_world_model", runs / "fsdp_world_model"
    assert metrics(fsdp) == pytest.approx(metrics(ddp), rel=1e-4)
    assert_same(checkpoint(fsdp, 2), checkpoint(ddp, 2), **A_TENTH_OF_A_STEP)
    models = [load_world_model(folder / "model") for folder in (ddp, fsdp)]
    for part in ("unet", "text_encoder", "vae"):
        one, other = (getattr(model, part).state_dict() for model in models)
        assert_same(one, other, **A_TENTH_OF_A_STEP)


def test_autocast_alone_chooses_the_precision():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, mixed_precision_policy="bf16")
    prepare_plugin(plugin)
    assert plugin.mixed_precision_policy is None


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"fsdp_version": 1}, "fsdp_version: 2"),
        ({"auto_wrap_policy": "size_based_wrap"}, "NO_WRAP"),
        ({"cpu_offload": True}, "fsdp_offload_params: false"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading: false"),
        ({"activation_checkpointing": True}, "fsdp_activation_checkpointing: false"),
    ],
)
def test_fsdp_that_would_not_train_exactly_is_refused(settings, needed, monkeypatch):
    # The plugin writes some settings there.
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2, **settings})
    with pytest.raises(SfvgenError, match=needed):
        prepare_plugin(plugin)


def test_training_begins_with_a_look_at_what_the_launcher_asks_for(monkeypatch):
    state = Accelerator(cpu=True, mixed_precision="no").state
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    monkeypatch.setitem(state._shared_state, "fsdp_plugin", plugin)
    monkeypatch.setattr("sfvgen_planner.world_model.trainer.is_sharding", lambda accelerator: True)
    with pytest.raises(SfvgenError, match="fsdp_version: 2"):
        begin_training(0, "no")
