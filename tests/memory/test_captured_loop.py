"""Captured steps of the loop; they need a GPU."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from sfvgen_planner.memory.adapter import Adapters
from sfvgen_planner.memory.rewritten_batches import RewrittenBatches
from sfvgen_planner.memory.slow_fast import LoopBatches, SlowFastObjective
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.captured_step import CapturedStep
from tests.memory.test_slow_fast import TABLE, recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("mixed_precision", [False, True])
@pytest.mark.parametrize("writes", ["first order", "second order", "some of second order"])
@pytest.mark.parametrize("denoiser", ["unet", "transformer"])
@pytest.mark.parametrize("num_time_slots", [0, 2])
def test_captured_losses_and_gradients_are_those_of_plain_steps(
    num_time_slots, denoiser, writes, mixed_precision, monkeypatch
):
    # Where a gradient is next to nothing, the normalised rule makes steps of its rounding errors.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    autocast = partial(torch.autocast, "cuda", torch.bfloat16, mixed_precision)
    model = tiny_world_model(denoiser=denoiser).to("cuda")
    settings = recipe()
    settings.memory.update(instruction_code=True, num_time_slots=num_time_slots)
    columns = {k: v.cuda() for k, v in vars(TABLE).items() if isinstance(v, torch.Tensor)}
    adapters = Adapters(model, settings.memory_config)
    objective = SlowFastObjective(
        model,
        adapters,
        settings.memory_config,
        second_order=writes == "second order",
        change_weight=1.0 if num_time_slots else 0.0,
    )
    objective.to("cuda").requires_grad_(True)
    parameters = list(objective.parameters())
    draw = batches = LoopBatches(replace(TABLE, **columns), model, settings, settings.stages[0])
    if writes == "some of second order":
        draw = RewrittenBatches(batches, objective, 2, autocast, capture=True)
    captured = CapturedStep(objective, parameters, autocast)
    generator = torch.Generator("cuda")
    for seed in range(6):
        batch = draw(generator.manual_seed(1009 * seed))
        objective.zero_grad()
        with autocast():
            loss = objective(*batch)
        loss.backward()
        # What of a plain step is kept alive would keep its stream, which can't be captured.
        loss = loss.detach()
        wanted = [None if p.grad is None else p.grad.clone() for p in parameters]
        assert torch.allclose(captured(batch), loss, rtol=1e-3)
        for parameter, gradient in zip(parameters, wanted, strict=True):
            assert (parameter.grad is None) == (gradient is None)
            if gradient is not None:
                scale = gradient.abs().max().clamp(min=1e-4)
                assert (parameter.grad - gradient).abs().max() < 0.05 * scale
