"""A training run that is killed again and again, whatever it is doing, always resumes."""

import json
import multiprocessing
import random
import shutil
import signal
import time
from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import trainer, training_checkpoints
from sfvgen_planner.world_model.recipe import Optimisation

STEPS = 100
KILLS = 20
PROCESSES = multiprocessing.get_context("forkserver")


class SquaredOutput(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, inputs):
        return self.layers(inputs).square().mean()


def batch(generator):
    return (torch.randn(4, 3, generator=generator),)


class Walk:
    """Draws each batch a step away from the one before."""

    def __init__(self):
        self.place = torch.zeros(4, 3)
        self.num_steps = 0

    def __call__(self, generator):
        self.num_steps += 1
        self.place = self.place + torch.randn(4, 3, generator=generator)
        return (self.place,)

    def state(self):
        return {"place": self.place}

    def load_state(self, state):
        self.place = state["place"]


def train(folder, steps=STEPS, checkpoint_every=1, draw=batch):
    optimisation = Optimisation(
        steps=steps, batch_size=4, learning_rate=0.05, checkpoint_every=checkpoint_every
    )
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    trainer.train(SquaredOutput(), draw, optimisation, folder, accelerator, 0, "test")


def slow_save_file(tensors, path):
    """Leaves a file cut in the middle for a while, as a slow disk does."""
    save_file(tensors, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    time.sleep(0.01)
    path.write_bytes(whole)
    time.sleep(0.005)


def slow_rmtree(path, ignore_errors=False):
    if ignore_errors and not path.exists():
        return
    for file in sorted(path.iterdir()):
        time.sleep(0.005)
        file.unlink()
    path.rmdir()


def worker(folder, doing):
    """Trains in its own process; where it is to be killed, slowly and telling what it does."""
    torch.set_num_threads(1)
    trainer.LOG_EVERY = 3
    if doing is None:
        train(folder)
        return

    def told_save_file(tensors, path):
        doing.send("checkpoint")
        slow_save_file(tensors, path)

    def told_batch(generator):
        doing.send("step")
        time.sleep(0.03)
        return batch(generator)

    training_checkpoints.save_file = told_save_file
    shutil.rmtree = slow_rmtree
    train(folder, draw=told_batch)


def finished(folder):
    process = PROCESSES.Process(target=worker, args=(folder, None))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def same_tensors(one, other):
    tensors, others = load_file(one), load_file(other)
    return tensors.keys() == others.keys() and all(
        torch.equal(tensors[name], others[name]) for name in tensors
    )


def test_a_run_killed_twenty_times_equals_one_that_was_not(tmp_path):
    moments = random.Random(0)
    killed_in = Counter()
    for _ in range(KILLS):
        told, doing = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=worker, args=(tmp_path / "killed", doing))
        process.start()
        # So far on any machine: a step and its checkpoint's three files, once or twice.
        for _ in range(moments.randint(1, 8)):
            assert told.poll(60)
            last = told.recv()
        time.sleep(moments.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        while told.poll():
            last = told.recv()
        killed_in[last] += 1
    assert killed_in.keys() == {"step", "checkpoint"}
    assert list((tmp_path / "killed").glob("checkpoint-*"))
    finished(tmp_path / "killed")
    finished(tmp_path / "whole")
    for name in ("model", "ema", "optimiser"):
        path = f"checkpoint-{STEPS:08d}/{name}.safetensors"
        assert same_tensors(tmp_path / "killed" / path, tmp_path / "whole" / path)
    lines = (tmp_path / "killed/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(3, STEPS, 3), STEPS]


@pytest.mark.parametrize("name", ["model", "ema", "optimiser", "draws", "state"])
@pytest.mark.parametrize("left", [0, 20, None])
def test_a_damaged_checkpoint_is_told_and_the_one_before_resumed(tmp_path, caplog, name, left):
    train(tmp_path, 8, 2, Walk())
    newest = tmp_path / "checkpoint-00000008"
    shutil.copytree(newest, tmp_path / "whole")
    damaged = newest / ("state.json" if name == "state" else f"{name}.safetensors")
    if left is None:
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:left])
    draw = Walk()
    train(tmp_path, 8, 2, draw)
    assert draw.num_steps == 2
    assert "checkpoint-00000008 is damaged" in caplog.text
    for file in ("model", "ema", "optimiser", "draws"):
        assert same_tensors(newest / f"{file}.safetensors", tmp_path / f"whole/{file}.safetensors")
    kept = [path.name for path in sorted(tmp_path.glob("checkpoint*"))]
    assert kept == ["checkpoint-00000006", "checkpoint-00000008"]


def test_a_checkpoint_from_before_draws_were_kept_is_gone_on_from(tmp_path, caplog):
    train(tmp_path, 4, 2)
    state = tmp_path / "checkpoint-00000004/state.json"
    known = json.loads(state.read_text())
    del known["files"]
    state.write_text(json.dumps(known))
    draw = Walk()
    train(tmp_path, 5, 2, draw)
    assert draw.num_steps == 1
    assert not caplog.records


def test_damaged_checkpoints_do_not_crowd_out_a_good_one(tmp_path):
    train(tmp_path, 4, 2)
    for step in (8, 9):
        shutil.copytree(tmp_path / "checkpoint-00000004", tmp_path / f"checkpoint-{step:08d}")
        (tmp_path / f"checkpoint-{step:08d}/ema.safetensors").unlink()
    train(tmp_path, 5, 2)
    kept = [path.name for path in sorted(tmp_path.glob("checkpoint*"))]
    assert kept == ["checkpoint-00000004", "checkpoint-00000005"]


def test_without_a_whole_checkpoint_training_begins_anew(tmp_path):
    train(tmp_path / "whole", 4)
    train(tmp_path / "lost", 4)
    for checkpoint in (tmp_path / "lost").glob("checkpoint-*"):
        (checkpoint / "state.json").write_text("{")
    train(tmp_path / "lost", 4)
    runs = [tmp_path / run / "checkpoint-00000004/model.safetensors" for run in ("whole", "lost")]
    assert runs[0].read_bytes() == runs[1].read_bytes()


def test_a_damaged_checkpoint_before_another_model_s_is_still_refused(tmp_path):
    train(tmp_path, 4, 2)
    (tmp_path / "checkpoint-00000004/ema.safetensors").write_bytes(b"cut")
    path = tmp_path / "checkpoint-00000002/model.safetensors"
    save_file({"other": torch.ones(1)}, path)
    with pytest.raises(SfvgenError, match="00000002 does not fit"):
        train(tmp_path, 4, 2)
