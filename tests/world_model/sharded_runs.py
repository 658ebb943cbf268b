"""Runs of a small module, alone or on two processes with DDP and FSDP."""

import json
import shutil

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch import nn
from torch.distributed.tensor import DTensor

from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.gradient_checkpointing import enable_gradient_checkpointing
from sfvgen_planner.world_model.recipe import Optimisation
from sfvgen_planner.world_model.sharding import is_sharding
from sfvgen_planner.world_model.slow_learning import SlowBatch, SlowObjective
from sfvgen_planner.world_model.trainer import Evaluation, shared_seed, train


class Objective(nn.Module):
    """Has sizes that two processes can't share evenly, a frozen layer and a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.register_buffer("offset", torch.tensor(0.5))
        self.losses = []

    def forward(self, inputs, wanted):
        loss = (self.frozen(self.layers(inputs)) + self.offset - wanted).square().mean()
        self.losses.append(loss.item())
        return loss


def run(folder, accelerator):
    """Six steps on batches of 16, which the processes share; what each step and the end gave."""

    def draw(generator):
        assert isinstance(next(module.parameters()), DTensor) == is_sharding(accelerator)
        inputs = torch.randn(16, 3, generator=generator.manual_seed(shared_seed(generator)))
        inputs = inputs[accelerator.process_index :: accelerator.num_processes]
        return inputs, inputs.sum(dim=1, keepdim=True)

    def evaluate(step):
        assert not module.training
        assert [type(part) for part in module.modules()] == kinds
        assert all(new is old for new, old in zip(module.parameters(), parameters, strict=True))
        # One process alone could not gather anything.
        return {"evaluated": module.layers(torch.linspace(-1, 1, 12).view(4, 3)).mean().item()}

    module = Objective()
    parameters, kinds = list(module.parameters()), [type(part) for part in module.modules()]
    settings = Optimisation(
        steps=6,
        batch_size=16,
        learning_rate=0.01,
        warmup_steps=2,
        checkpoint_every=3,
        max_grad_norm=0.5,
    )
    train(module, draw, settings, folder, accelerator, 0, "test", Evaluation(2, evaluate))
    losses = list(module.losses)
    evaluate(6)
    weights = {name: value.tolist() for name, value in module.state_dict().items()}
    return {"losses": losses, "weights": weights}


class Walk:
    """Draws each process's batch a step away from its one before."""

    def __init__(self):
        self.place = torch.zeros(4, 3)

    def __call__(self, generator):
        self.place = self.place + torch.randn(4, 3, generator=generator)
        return self.place, self.place.sum(dim=1, keepdim=True)

    def state(self):
        return {"place": self.place}

    def load_state(self, state):
        self.place = state["place"]


def run_walk(folder, accelerator):
    """Six steps along a walk of each process; the losses, and where the walk has led."""
    module, walk = Objective(), Walk()
    settings = Optimisation(steps=6, batch_size=4, learning_rate=0.01, checkpoint_every=3)
    train(module, walk, settings, folder, accelerator, 0, "test")
    return {"losses": module.losses, "place": walk.place.tolist()}


def run_world_model(folder, accelerator):
    """Two steps of slow learning, and the model saved by one process alone."""
    model = tiny_world_model()
    enable_gradient_checkpointing(model.unet)

    def draw(generator):
        assert isinstance(next(model.unet.parameters()), DTensor) == is_sharding(accelerator)
        latents, noise = torch.randn(2, 2, 4, 6, 4, 4, generator=generator)
        given = torch.ones(2)
        words = model.tokenize(["put the red cube on the blue pad", ""])
        times = torch.tensor([500.0, 37.25])
        actions = torch.rand(2, 2, 4, generator=generator)
        return SlowBatch(latents, 4, actions, words, given, given, noise, 0.1 * noise, times)

    settings = Optimisation(steps=2, batch_size=2, learning_rate=0.01, warmup_steps=0)
    train(SlowObjective(model), draw, settings, folder, accelerator, 0, "test")
    if accelerator.is_main_process:
        model.save_pretrained(folder / "model")


def shard_on_cpu(accelerator, is_sharded=True):
    """Accelerate itself uses FSDP on accelerators only, though torch can shard on the CPU."""
    kind = DistributedType.FSDP if is_sharded else DistributedType.MULTI_CPU
    accelerator.state.distributed_type = PartialState().distributed_type = kind
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)


def go_on(folder, name, begun_by, accelerator):
    """Begin a run with half of another."""
    if begun_by and accelerator.is_main_process:
        checkpoint = "checkpoint-00000003"
        shutil.copytree(folder / begun_by / checkpoint, folder / name / checkpoint)
    accelerator.wait_for_everyone()


def tell(folder, did, accelerator):
    """Write what this process of a run did."""
    (folder / f"process-{accelerator.process_index}.json").write_text(json.dumps(did))


def run_all(folder):
    """All runs of one of two processes."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    assert accelerator.num_processes == 2
    for name, is_sharded, begun_by in [
        ("ddp", False, None),
        ("fsdp", True, None),
        ("fsdp_resumed", True, "fsdp"),
        ("fsdp_after_ddp", True, "ddp"),
        ("ddp_after_fsdp", False, "fsdp"),
    ]:
        go_on(folder, name, begun_by, accelerator)
        shard_on_cpu(accelerator, is_sharded)
        tell(folder / name, run(folder / name, accelerator), accelerator)
    shard_on_cpu(accelerator, is_sharded=False)
    for name, begun_by in [("walk", None), ("walk_resumed", "walk")]:
        go_on(folder, name, begun_by, accelerator)
        tell(folder / name, run_walk(folder / name, accelerator), accelerator)
    for name, is_sharded in [("ddp_world_model", False), ("fsdp_world_model", True)]:
        shard_on_cpu(accelerator, is_sharded)
        run_world_model(folder / name, accelerator)
