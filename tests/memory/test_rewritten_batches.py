"""Gradients through some of a memory's writes, each taken by itself."""

from contextlib import nullcontext

import pytest
import torch

from sfvgen_planner.memory.adapter import Adapters
from sfvgen_planner.memory.rewritten_batches import RewrittenBatches
from sfvgen_planner.memory.slow_fast import LoopBatches, SlowFastObjective
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.slow_learning import mean_error
from tests.emulated_graphs import EmulatedGraph, emulate_graphs
from tests.finite_differences import slope
from tests.loop_tables import TABLE, recipe


class Loop:
    """A tiny model's loop in double precision, with memories that have begun to matter."""

    def __init__(self, num_rewrites, max_chunks=3, capture=False):
        settings = recipe(stage={"max_chunks": max_chunks, "second_order_writes": num_rewrites})
        stage = settings.stages[0]
        self.model = tiny_world_model(denoiser="transformer")
        self.adapters = Adapters(self.model, settings.memory_config)
        for module in (self.model.unet, self.model.text_encoder):
            torch.nn.Module.to(module, torch.float64)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.adapters.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data = parameter.data + 0.1 * noise
        config = settings.training_config(stage)
        self.objective = SlowFastObjective(self.model, self.adapters, config)
        self.objective.requires_grad_(True)
        self.exact = SlowFastObjective(self.model, self.adapters, config, second_order=True)
        self.batches = LoopBatches(TABLE, self.model, settings, stage)
        self.draw = RewrittenBatches(
            self.batches, self.objective, num_rewrites, nullcontext, capture
        )

    def batch(self, num_chunks, seed=0):
        """What is written and judged, in double precision."""
        generator = torch.Generator().manual_seed(seed)
        writes, judged = self.batches.draw(num_chunks, generator)

        def double(fields):
            floating = {
                name: value.double()
                for name, value in fields._asdict().items()
                if isinstance(value, torch.Tensor) and value.is_floating_point()
            }
            return fields._replace(**floating)

        return double(writes), double(judged)

    def gradient(self, objective, writes, judged):
        """Of all parameters at once."""
        objective.zero_grad()
        objective(writes, judged, None).backward()
        return torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])


@pytest.fixture(autouse=True)
def precise(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)


def test_memories_and_their_loss_are_those_of_plain_writes():
    loop = Loop(num_rewrites=2)
    writes, judged = loop.batch(num_chunks=3)
    rewritten = loop.draw._written(writes, torch.tensor([2, 0]))
    for name, value in loop.objective.write(writes).items():
        assert torch.allclose(rewritten.fast[name], value, atol=1e-12)
    wanted = mean_error(loop.objective.errors(loop.objective.write(writes), 3, judged))
    assert torch.allclose(loop.objective(rewritten, judged, None), wanted, atol=1e-12)


def test_through_a_single_write_the_gradient_is_that_of_second_order():
    loop = Loop(num_rewrites=1)
    writes, judged = loop.batch(num_chunks=1)
    rewritten = loop.draw._written(writes, torch.tensor([0]))
    wanted = loop.gradient(loop.exact, writes, judged)
    assert torch.allclose(loop.gradient(loop.objective, rewritten, judged), wanted, atol=1e-9)


def test_the_gradient_is_that_of_finite_differences_with_earlier_writes_held_fixed():
    loop = Loop(num_rewrites=2)
    writes, judged = loop.batch(num_chunks=2)
    rewritten = loop.draw._written(writes, torch.tensor([0, 1]))
    loop.gradient(loop.objective, rewritten, judged)
    named = {n: p for n, p in loop.objective.named_parameters() if p.grad is not None}
    began = {name: value.clone() for name, value in loop.adapters.start(6).items()}

    def loss():
        """Of memories to which every chunk adds what it does after the first, unchanged ones."""
        start = loop.adapters.start(6)
        fast = dict(start)
        for index, (chunks, batches) in enumerate(loop.objective.chunks(writes)):
            held = {n: v.unflatten(0, (2, 6))[index] for n, v in rewritten.before.items()}
            before = {name: held[name] - began[name] + start[name] for name in held}
            after, _ = loop.objective.learner.learn(before, chunks, batches)
            fast = {name: fast[name] + after[name] - before[name] for name in fast}
        return mean_error(loop.objective.errors(fast, 2, judged)).item()

    for kind in ("lora_A", "position_code", "lora_B", "to_q"):
        names = [name for name in named if kind in name]
        norm = torch.cat([named[n].grad.flatten() for n in names]).norm()
        direction = {n: named[n].grad / norm for n in names}
        assert slope(loss, named, direction) == pytest.approx(norm.item(), rel=1e-4), kind


def test_a_part_of_the_writes_gives_the_gradient_of_all_on_average():
    loop = Loop(num_rewrites=1)
    writes, judged = loop.batch(num_chunks=3)

    def gradient(*chosen):
        rewritten = loop.draw._written(writes, torch.tensor(chosen))
        return loop.gradient(loop.objective, rewritten, judged)

    parts = torch.stack([gradient(index) for index in range(3)])
    assert torch.allclose(parts.mean(dim=0), gradient(0, 1, 2), atol=1e-10)
    assert not torch.allclose(parts[0], parts[1], rtol=0.05)


def test_all_horizons_share_a_graph(monkeypatch):
    monkeypatch.undo()
    loop, generator = Loop(num_rewrites=1), torch.Generator()
    for module in (loop.model.unet, loop.model.text_encoder):
        torch.nn.Module.to(module, torch.float32)
    emulate_graphs(monkeypatch)
    graphed = RewrittenBatches(loop.batches, loop.objective, 1, nullcontext, capture=True)
    horizons = set()
    for step in range(8):
        seed = 1009 * step  # Processes share the horizon of a step.
        wanted = loop.draw(generator.manual_seed(seed)).writes
        found = graphed(generator.manual_seed(seed)).writes
        for state in ("fast", "before"):
            for name, value in getattr(wanted, state).items():
                assert torch.allclose(getattr(found, state)[name], value, atol=1e-6)
        assert torch.equal(found.chunks, wanted.chunks)
        assert found.again.windows.shape[:2] == (1, 6)
        horizons.add(int(found.num_chunks[0]))
    assert len(horizons) > 1
    assert EmulatedGraph.count == 1
