"""Writes as CUDA graphs, against plain ones; on a CPU with emulated graphs."""

from dataclasses import replace

import pytest
import torch

from sfvgen_planner.memory import MEMORY_VARIANTS, EpisodicMemory, MemoryConfig
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.gradient_checkpointing import enable_gradient_checkpointing
from tests.emulated_graphs import EmulatedGraph, emulate_graphs

CONFIGS = {
    "paper": MemoryConfig(rank=4, num_steps=2, learning_rate=1e-2),
    "conditioned": MemoryConfig(rank=4, num_steps=2, learning_rate=1e-2, conditioned=True),
    "ours": replace(MEMORY_VARIANTS["ours"], num_time_codes=3, instruction_code=True),
    "table": replace(
        MEMORY_VARIANTS["ours"], num_time_codes=3, instruction_code=True, num_time_slots=2
    ),
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TEXTS = ["return the red cube", "put the blue cube on the pad"]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request, monkeypatch):
    if request.param == "cpu":
        emulate_graphs(monkeypatch)
    return request.param


class Pair:
    """A memory whose writes are captured, and one alike in a model alike whose are not."""

    def __init__(self, config, device, denoiser="transformer", dtype=torch.float32):
        self.memories = []
        for captures in (True, False):
            model = tiny_world_model(denoiser=denoiser).to(device, dtype)
            enable_gradient_checkpointing(model.unet)
            # Both with the kernels that compiling chooses.
            model.compile(disable=True)
            if not captures:
                model._fast = None
            self.memories.append(EpisodicMemory(model, config, num_memories=2))
        self.generator = torch.Generator().manual_seed(0)

    def write(self, indices):
        """Write the same into both and compare them."""
        # The same algorithms in both: Adam's first step is a gradient's sign, which rounding turns.
        torch.backends.cudnn.benchmark = False
        count = len(indices)
        past, chunk = torch.randn(2, count, 4, 8, 4, 4, generator=self.generator)
        actions = torch.rand(count, 8, 4, generator=self.generator) * 2 - 1
        texts = [TEXTS[index] for index in indices]
        before = self.memories[0].state(indices[0])
        captured, plain = (
            memory.write_batch(past, chunk, texts, actions, indices) for memory in self.memories
        )
        for one, other in zip(captured, plain, strict=True):
            assert one.loss_before == pytest.approx(other.loss_before, rel=2e-2)
            assert one.loss_after == pytest.approx(other.loss_after, rel=2e-2)
        learnt = 0.0
        for index in range(2):
            found, wanted = (memory.state(index) for memory in self.memories)
            for name, value in wanted.items():
                change = (value - before[name]).abs().max() if index == indices[0] else 0
                learnt = max(learnt, float(change))
                close = torch.isclose(found[name].float(), value.float(), rtol=1e-2, atol=1e-3)
                assert close.float().mean() > 0.98, name
        assert learnt > 5e-3

    def imagine(self):
        past = torch.randn(2, 4, 4, 4, 4, generator=self.generator)
        found, wanted = (
            memory.world_model(
                past,
                TEXTS,
                num_frames=8,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            ).latents
            for memory in self.memories
        )
        assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("config", CONFIGS)
def test_captured_writes_are_plain_writes(config, device):
    """Each kind runs aside, is captured and replayed, while graphs imagine in between."""
    pair = Pair(CONFIGS[config], device)
    for indices in ([0, 1], [1], [0, 1], [0], [1], [0, 1], [0]):
        pair.write(indices)
        pair.imagine()
    assert pair.memories[0].num_writes == [5, 5]
    if device == "cpu":
        # One for both memories and one for either alone.
        assert EmulatedGraph.count == 2


@pytest.mark.parametrize("denoiser", ["unet", "transformer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_each_denoiser_and_precision(denoiser, dtype, device):
    pair = Pair(CONFIGS["ours"], device, denoiser, dtype)
    for _ in range(3):
        pair.write([0, 1])


def test_new_weights_are_captured_anew_and_weights_of_the_moment_are_read(device):
    pair = Pair(CONFIGS["ours"], device)
    unets = [memory.world_model.unet for memory in pair.memories]
    for _ in range(3):
        pair.write([0, 1])
    for unet in unets:
        for name, parameter in unet.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data * 1.2
    for _ in range(3):
        pair.write([0, 1])
    with torch.no_grad():
        for unet in unets:
            for name, parameter in unet.named_parameters():
                if "lora_" not in name:
                    parameter.mul_(0.8)
    pair.write([0, 1])
    if device == "cpu":
        assert EmulatedGraph.count == 2


def test_graphs_outlive_neither_their_memory_nor_its_models_compilation(device):
    pair = Pair(CONFIGS["ours"], device)
    model = pair.memories[0].world_model
    for _ in range(2):
        for _ in range(2):
            pair.write([0, 1])
        model.compile(disable=True)
    for memory in pair.memories:
        memory.detach()
    assert not pair.memories[0]._learner.has_graphs
    pair.memories = [
        EpisodicMemory(memory.world_model, CONFIGS["paper"], num_memories=2)
        for memory in pair.memories
    ]
    for _ in range(3):
        pair.write([0, 1])


def test_a_model_in_training_captures_nothing(device):
    """Its dropout draws random numbers."""
    pair = Pair(CONFIGS["ours"], device)
    for memory in pair.memories:
        memory.world_model.unet.train()
    for _ in range(3):
        pair.write([0, 1])
    assert not pair.memories[0]._learner.has_graphs
