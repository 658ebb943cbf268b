import json
import shutil
import signal
import time
from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import training_checkpoints
from sfvgen_planner.world_model.recipe import Optimisation
from sfvgen_planner.world_model.trainer import Evaluation, learning_rate_factor, train
from sfvgen_planner.world_model.training_checkpoints import TrainingCheckpoints
from tests.processes import run_on_two_processes


class Regression(nn.Module):
    """Least squares with a known answer."""

    def __init__(self, size=3):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(size, 1)

    def forward(self, inputs, wanted):
        return (self.layer(inputs) - wanted).square().mean()


WEIGHTS = torch.tensor([[1.0, -2.0, 0.5]])


def draw(generator):
    inputs = torch.randn(16, 3, generator=generator)
    return inputs, inputs @ WEIGHTS.T + 3.0


def optimisation(**changes):
    values = {"steps": 40, "batch_size": 16, "learning_rate": 0.1, "warmup_steps": 5}
    return Optimisation(**{**values, "weight_decay": 0.0, "checkpoint_every": 10, **changes})


def run(folder, settings=None, module=None, draw_batch=draw, evaluation=None):
    module = module or Regression()
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    settings = settings or optimisation()
    train(module, draw_batch, settings, folder, accelerator, 0, "test", evaluation)
    return module


def test_finds_the_known_weights(tmp_path):
    module = run(tmp_path, optimisation(steps=600, ema_decay=0.9, checkpoint_every=600))
    assert torch.allclose(module.layer.weight, WEIGHTS, atol=0.02)
    assert module.layer.bias.item() == pytest.approx(3.0, abs=0.02)


def test_a_run_stopped_and_resumed_equals_one_that_was_not(tmp_path):
    whole = run(tmp_path / "whole")

    calls = 0

    def interrupted(generator):
        nonlocal calls
        calls += 1
        if calls == 26:
            signal.raise_signal(signal.SIGINT)
        return draw(generator)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", draw_batch=interrupted)
    assert (tmp_path / "parts/checkpoint-00000026").is_dir()
    resumed = run(tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def interrupt_in_checkpoint(patch, step):
    """Ctrl-C comes while the checkpoint of this step is written."""
    save = TrainingCheckpoints.save

    def interrupted(checkpoints, at, settings):
        if at == step:
            signal.raise_signal(signal.SIGINT)
        save(checkpoints, at, settings)

    patch.setattr(TrainingCheckpoints, "save", interrupted)


@pytest.mark.parametrize("step", [10, 40])
def test_an_interrupt_within_a_checkpoint_stops_the_run(tmp_path, monkeypatch, step):
    """At the next step, or after the last one."""
    interrupt_in_checkpoint(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    newest = max(path.name for path in tmp_path.glob("checkpoint*"))
    assert newest == f"checkpoint-{min(step + 1, 40):08d}"


def train_until_one_is_interrupted(folder):
    torch.set_num_threads(1)
    process, calls = Accelerator(cpu=True, mixed_precision="no"), Counter()
    assert process.num_processes == 2
    with pytest.MonkeyPatch.context() as patch:
        if process.process_index == 1:
            interrupt_in_checkpoint(patch, step=3)
        with pytest.raises(KeyboardInterrupt):
            run(folder / "last", optimisation(steps=3))

    def interrupted(generator):
        calls["draw"] += 1
        if calls["draw"] == 13 and process.process_index == 1:
            signal.raise_signal(signal.SIGINT)
        return draw(generator)

    try:
        run(folder, optimisation(steps=1000, checkpoint_every=1000), draw_batch=interrupted)
    except KeyboardInterrupt as error:
        (folder / f"process-{process.process_index}").write_text(str(error))


def test_an_interrupt_of_one_process_stops_all_at_the_same_step(tmp_path):
    run_on_two_processes(train_until_one_is_interrupted, tmp_path)
    told = [(tmp_path / f"process-{index}").read_text() for index in (0, 1)]
    assert told == ["test stopped at step 20"] * 2
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint-00000020"]


def test_half_written_checkpoint_is_ignored(tmp_path):
    settings = optimisation(steps=20)
    whole = run(tmp_path / "whole", settings)
    run(tmp_path / "parts", optimisation(steps=20, checkpoint_every=10))
    (tmp_path / "parts/checkpoint-00000020").rename(tmp_path / "parts/checkpoint.tmp")
    (tmp_path / "parts/checkpoint.tmp/ema.safetensors").write_bytes(b"cut")
    resumed = run(tmp_path / "parts", settings)
    assert torch.equal(whole.layer.weight, resumed.layer.weight)


def test_what_only_looks_like_a_checkpoint_is_none_and_is_kept(tmp_path):
    run(tmp_path, optimisation(steps=20))
    shutil.copytree(tmp_path / "checkpoint-00000010", tmp_path / "checkpoint-backup")
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500/pytorch_model.bin").write_bytes(b"another's")
    (tmp_path / "checkpoint-99999999").write_text("a file")
    steps = []
    run(tmp_path, optimisation(steps=23), draw_batch=lambda g: steps.append(1) or draw(g))
    assert len(steps) == 3
    assert (tmp_path / "checkpoint-backup/model.safetensors").is_file()
    assert (tmp_path / "checkpoint-500/pytorch_model.bin").read_bytes() == b"another's"


@pytest.mark.parametrize("state", [b"[]", b"{}", b'{"step": \xff}'])
def test_a_checkpoint_whose_state_is_no_state_is_left_out(tmp_path, caplog, state):
    whole = run(tmp_path / "whole", optimisation(steps=20))
    run(tmp_path / "parts", optimisation(steps=20))
    (tmp_path / "parts/checkpoint-00000020/state.json").write_bytes(state)
    resumed = run(tmp_path / "parts", optimisation(steps=20))
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert "checkpoint-00000020 is damaged" in caplog.text


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run(tmp_path)
    kept = sorted(path.name for path in tmp_path.glob("checkpoint*"))
    assert kept == ["checkpoint-00000030", "checkpoint-00000040"]


def test_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(SfvgenError, match="does not fit"):
        run(tmp_path, module=Regression(size=5))


def test_metrics_tell_the_loss_the_rate_the_gradient_and_the_speed(tmp_path):
    """Against the closed form of one step from weights w: the loss and its gradient."""
    module = Regression()
    inputs, wanted = draw(torch.Generator().manual_seed(0))
    weight, bias = (p.detach().clone() for p in module.layer.parameters())
    error = inputs @ weight.T + bias - wanted
    gradient = torch.cat([(2 * error * inputs).mean(dim=0), 2 * error.mean(dim=0)])
    settings = optimisation(steps=1, max_grad_norm=0.01)
    before = time.monotonic()
    run(tmp_path, settings, module, lambda generator: (inputs, wanted))
    [metrics] = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert metrics["step"] == 1
    assert metrics["loss"] == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert metrics["gradient_norm"] == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert metrics["learning_rate"] == pytest.approx(0.1 / 5)
    assert metrics["samples_per_second"] > 16 / (time.monotonic() - before)


def test_evaluation_sees_the_averaged_weights_and_changes_nothing(tmp_path):
    whole = run(tmp_path / "whole")
    module, seen = Regression(), {}

    def evaluate(step):
        assert not module.training
        seen[step] = module.layer.weight.detach().clone()
        return {"first": seen[step][0, 0].item()}

    run(tmp_path / "seen", module=module, evaluation=Evaluation(15, evaluate))
    assert torch.equal(whole.layer.weight, module.layer.weight)
    assert list(seen) == [15, 30, 40]
    # What training leaves in the module is the average after the last step.
    assert torch.equal(seen[40], whole.layer.weight)
    half = run(tmp_path / "half", optimisation(steps=40, checkpoint_every=15))
    assert torch.equal(half.layer.weight, whole.layer.weight)
    averages = load_file(tmp_path / "half/checkpoint-00000030/ema.safetensors")
    assert torch.equal(seen[30], averages["layer.weight"])
    lines = [json.loads(line) for line in (tmp_path / "seen/metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [15, 30, 40]
    assert all(line["first"] == seen[line["step"]][0, 0].item() for line in lines)
    assert "loss" in lines[-1]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), SafetensorError("No space left")])
def test_a_full_disk_is_told_and_the_checkpoints_before_are_gone_on_from(
    tmp_path, monkeypatch, error
):
    def until_full(tensors, path):
        if len(list((tmp_path / "a").glob("checkpoint-*"))) == 2:
            raise error
        save_file(tensors, path)

    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(training_checkpoints, "save_file", until_full)
        with pytest.raises(SfvgenError, match=r"cannot write .*a \(No space left\)"):
            run(tmp_path / "a")
    assert (tmp_path / "a/checkpoint-00000020").is_dir()
    resumed = run(tmp_path / "a")
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_loss_that_explodes_is_told(tmp_path):
    with pytest.raises(SfvgenError, match="not finite"):
        run(tmp_path, draw_batch=lambda g: (torch.full((1, 3), float("nan")), torch.ones(1, 1)))


@pytest.mark.parametrize("broken", ["loss", "gradient"])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_diverged_model_is_never_what_is_gone_on_from(tmp_path, broken, stopped):
    """Step 20 breaks it, where a checkpoint is due, or 17, where it is interrupted."""
    last, module, calls = 17 if stopped else 20, Regression(), 0

    def breaking(generator):
        nonlocal calls
        calls += 1
        inputs, wanted = draw(generator)
        if calls == last:
            if broken == "loss":
                inputs = inputs * float("nan")
            else:
                # Its loss is still that of the step before.
                module.layer.weight.register_hook(lambda gradient: gradient * float("nan"))
            if stopped:
                signal.raise_signal(signal.SIGINT)
        return inputs, wanted

    with pytest.raises(SfvgenError, match=f"the {broken} is not finite at step {last}"):
        run(tmp_path / "parts", module=module, draw_batch=breaking)
    assert [path.name for path in tmp_path.glob("parts/checkpoint*")] == ["checkpoint-00000010"]
    resumed, whole = run(tmp_path / "parts"), run(tmp_path / "whole")
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_learning_rate_warms_up_and_decays_to_a_tenth():
    settings = optimisation(steps=105, warmup_steps=5)
    factors = [learning_rate_factor(step, settings) for step in range(106)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[55] == pytest.approx(0.55)
    assert factors[105] == pytest.approx(0.1)
