import pytest
import torch
from torch import nn

from sfvgen_planner.memory import MemoryConfig
from sfvgen_planner.memory.adapter import Adapters
from sfvgen_planner.memory.config import TEMPORAL_VALUES
from sfvgen_planner.memory.fast_learning import FastLearner
from sfvgen_planner.memory.slow_fast import SlowFastObjective, Writes
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.slow_learning import SlowBatch, SlowObjective
from tests.finite_differences import slope

OURS = MemoryConfig(
    rank=4,
    target_modules=TEMPORAL_VALUES,
    position_code=True,
    num_time_codes=3,
    rule="normalised",
    learning_rate=0.01,
    num_steps=1,
    num_noise_draws=2,
    min_noise=0.95,
)


def make(config, seed=0):
    model = tiny_world_model(denoiser="transformer", seed=seed)
    return model, Adapters(model, config)


def batch(model, samples, seed=0, context_given=0.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return SlowBatch(
        latents=normal(samples, 4, 6, 4, 4),
        num_past=2,
        actions=torch.zeros(samples, 4, 4, dtype=dtype),
        token_ids=model.tokenize(["put the red cube"] * samples),
        actions_given=torch.zeros(samples, dtype=dtype),
        context_given=torch.full((samples,), context_given, dtype=dtype),
        noise=normal(samples, 4, 6, 4, 4),
        context_noise=torch.zeros((), dtype=dtype),
        timesteps=torch.full((samples,), 970.0, dtype=dtype),
    )


def gradients(objective, adapters, fast, chunks, data, num_memories):
    """By backward() on leaves, one memory's mean loss at a time."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in fast.items()}
    adapters.place(leaves, chunks)
    errors, counted = objective.errors(data)
    (errors / counted).reshape(num_memories, -1).mean(dim=1).sum().backward()
    adapters.place(None)
    return {name: leaf.grad for name, leaf in leaves.items()}


def test_a_normalised_step_is_its_formula():
    """B -= eta * g / rms(g) for each tensor and memory."""
    model, adapters = make(OURS)
    objective = SlowObjective(model)
    data, chunks = batch(model, 4), torch.tensor([0, 1])
    torch.manual_seed(0)
    fast = {name: 0.1 * torch.randn_like(value) for name, value in adapters.start(2).items()}
    slopes = gradients(objective, adapters, fast, chunks, data, 2)
    learnt, losses = FastLearner(objective, adapters, OURS).learn(fast, chunks, [data])
    for name, value in fast.items():
        for memory in range(2):
            g = slopes[name][memory]
            wanted = value[memory] - 0.01 * g / g.square().mean().sqrt()
            assert torch.allclose(learnt[name][memory], wanted, atol=1e-5)
    assert losses.shape == (2,)


class Product(nn.Module):
    """Stands for the denoising objective: the loss is delta . layer(x) for one token."""

    def __init__(self, layer, x, delta):
        super().__init__()
        self.layer, self.x, self.delta = layer, x, delta

    def errors(self, data):
        self.layer.codes.listen(None, (), {"encoder_hidden_states": torch.zeros(1, 1, 16)})
        return (self.layer(self.x) * self.delta).sum().reshape(1), torch.ones(1)


def test_one_token_is_written_as_a_rank_one_update():
    """B = -eta delta z^T / rms(delta z^T), with z the bottleneck's value."""
    model, adapters = make(OURS)
    layer = model.unet.temporal_transformer_blocks[0].attn1.to_v
    for name, parameter in model.unet.named_parameters():
        if "lora_position_code" in name:
            parameter.data = parameter.data[:1]
    x, delta = torch.randn(1, 1, 32), torch.randn(32)
    learner = FastLearner(Product(layer, x, delta), adapters, OURS)
    name = "base_model.model.temporal_transformer_blocks.0.attn1.to_v"
    start = {f"{name}.lora_B.weight": adapters.start(1)[f"{name}.lora_B.weight"]}
    adapters._layers = {name: layer}
    learnt, _ = learner.learn(start, torch.tensor([0]), [None])
    z = layer.lora_A["default"].weight @ x[0, 0] + layer.lora_position_code["default"][0]
    outer = torch.outer(delta, z)
    wanted = -0.01 * outer / outer.square().mean().sqrt()
    (written,) = learnt.values()
    assert torch.allclose(written[0], wanted, atol=1e-6)
    assert torch.linalg.matrix_rank(written[0], rtol=1e-4) == 1


def test_adam_steps_are_those_of_torch():
    config = MemoryConfig(rank=2, learning_rate=1e-3)
    model, adapters = make(config)
    objective = SlowObjective(model)
    steps = [batch(model, 2, seed) for seed in range(3)]
    learnt, _ = FastLearner(objective, adapters, config).learn(
        adapters.start(1), torch.tensor([0]), steps
    )
    leaves = {k: v.detach().clone().requires_grad_() for k, v in adapters.start(1).items()}
    optimiser = torch.optim.Adam(leaves.values(), lr=1e-3)
    for data in steps:
        slopes = gradients(objective, adapters, leaves, torch.tensor([0]), data, 1)
        for name, leaf in leaves.items():
            leaf.grad = slopes[name]
        optimiser.step()
    for name, leaf in leaves.items():
        assert torch.allclose(learnt[name], leaf, atol=1e-6)


@pytest.fixture
def precise(monkeypatch):
    """The loop's objective in double precision, its batch, and the parameters' directions."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    model, adapters = make(OURS)
    for module in (model.unet, model.text_encoder):
        torch.nn.Module.to(module, torch.float64)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapters.parameters():
        start = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = parameter.data + 0.1 * start
    judged = batch(model, 4, seed=2, context_given=1.0, dtype=torch.float64)
    writes = Writes(
        windows=torch.randn(2, 2, 4, 6, 4, 4, generator=generator, dtype=torch.float64),
        num_past=2,
        noise=torch.randn(2, 1, 4, 4, 6, 4, 4, generator=generator, dtype=torch.float64),
        timesteps=torch.full((2, 1, 4), 970.0, dtype=torch.float64),
        token_ids=model.tokenize([""])[0],
    )
    return model, adapters, writes, judged


def directions(objective):
    """For each kind of weight the gradient, taken as a direction of unit length."""
    named = {n: p for n, p in objective.named_parameters() if p.grad is not None}
    kinds = {
        "slow": [n for n in named if "lora_" not in n],
        "A": [n for n in named if "lora_A" in n],
        "P": [n for n in named if "position_code" in n],
        "start of B": [n for n in named if "lora_B" in n],
        "time code": [n for n in named if "lora_time" in n],
    }
    for kind, names in kinds.items():
        norm = torch.stack([named[n].grad.square().sum() for n in names]).sum().sqrt()
        yield kind, {n: named[n].grad / norm for n in names}, norm.item()


@pytest.mark.parametrize("second_order", [True, False])
def test_gradients_are_those_of_finite_differences(precise, second_order):
    """With second order of the whole loop; without, of the loss with the steps held fixed."""
    model, adapters, writes, judged = precise
    objective = SlowFastObjective(model, adapters, OURS, second_order)
    objective.requires_grad_(True)
    objective(writes, judged, None).backward()
    named = dict(objective.named_parameters())
    with torch.no_grad():
        fixed = {k: v - adapters.start(2)[k] for k, v in objective.write(writes).items()}

    def loss():
        if second_order:
            return objective(writes, judged, None).item()
        fast = {k: v + fixed[k] for k, v in adapters.start(2).items()}
        errors, counted = objective.errors(fast, 2, judged)
        return (errors.sum() / counted.sum()).item()

    for kind, direction, norm in directions(objective):
        assert slope(loss, named, direction) == pytest.approx(norm, rel=1e-4), kind


def test_second_order_reaches_what_first_order_leaves_out(precise):
    """How a chunk is written shapes the loss, but first order does not see it."""
    model, adapters, writes, judged = precise
    found = []
    for second_order in (True, False):
        objective = SlowFastObjective(model, adapters, OURS, second_order)
        objective.requires_grad_(True)
        objective.zero_grad()
        objective(writes, judged, None).backward()
        code = next(p for n, p in objective.named_parameters() if "position_code" in n)
        found.append(code.grad.clone())
    assert not torch.allclose(found[0], found[1], rtol=0.05)
