from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from sfvgen_planner.world_model.captured_step import CapturedStep
from sfvgen_planner.world_model.recipe import Optimisation
from sfvgen_planner.world_model.trainer import train

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.unused = nn.Linear(3, 1)

    def forward(self, inputs, scale):
        return (scale * self.layer(inputs)).square().mean()


def draw(generator):
    # Steps of two kinds, as in training with one or more past frames.
    device = generator.device
    size = 4 + 4 * (generator.initial_seed() % 2)
    return torch.randn(size, 3, generator=generator, device=device), 2


def run(folder, device, capture):
    module = Regression()
    optimisation = Optimisation(
        steps=20, batch_size=4, learning_rate=0.1, warmup_steps=0, capture=capture
    )
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    train(module, draw, optimisation, folder, accelerator, 0, "test")
    return module.layer.weight.detach().cpu()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_training_with_captured_steps_is_training(tmp_path, device):
    plain, captured = (run(tmp_path / str(c), device, c) for c in (False, True))
    assert torch.allclose(plain, captured, rtol=1e-3, atol=1e-5)


@needs_gpu
def test_every_shape_and_constant_has_its_own_graph():
    module = Regression().cuda()
    parameters = list(module.parameters())
    captured = CapturedStep(module, parameters, nullcontext)
    for size, scale in ((4, 1), (8, 1), (4, 3), (4, 1), (4, 3), (8, 1), (4, 1)):
        inputs = torch.randn(size, 3, device="cuda")
        # d/dw mean((s (w x + b))^2) = mean(2 s^2 (w x + b) x)
        with torch.no_grad():
            outputs = module.layer(inputs)
            wanted = (2 * scale**2 * outputs * inputs).mean(dim=0)
        assert torch.allclose(captured((inputs, scale)), (scale * outputs).square().mean())
        assert torch.allclose(module.layer.weight.grad[0], wanted, rtol=1e-4, atol=1e-6)
        assert module.unused.weight.grad is None
