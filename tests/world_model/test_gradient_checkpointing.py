from collections import Counter

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.gradient_checkpointing import enable_gradient_checkpointing


@pytest.fixture
def unet():
    return tiny_world_model().unet


def loss(unet):
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, unet.config.in_channels, 6, 4, 4, generator=generator)
    states = torch.randn(2, 16, 16, generator=generator)
    return unet(sample, torch.tensor([3, 800]), encoder_hidden_states=states).sample.square().mean()


def loss_and_gradients(unet):
    unet.zero_grad()
    value = loss(unet)
    value.backward()
    return value.item(), {
        name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None
    }


def saved_bytes(unet):
    total = 0

    def count(tensor):
        nonlocal total
        total += tensor.nbytes
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        loss(unet)
    return total


def test_same_loss_and_gradients_for_less_memory(unet):
    keys = list(unet.state_dict())
    wanted, gradients = loss_and_gradients(unet)
    memory = saved_bytes(unet)
    enable_gradient_checkpointing(unet)
    assert list(unet.state_dict()) == keys
    found, others = loss_and_gradients(unet)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, rtol=1e-4, atol=1e-6), name
    assert saved_bytes(unet) < memory / 3


def test_dropout_is_the_same_when_it_is_recomputed(unet):
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    unet.train()
    torch.manual_seed(0)
    wanted, gradients = loss_and_gradients(unet)
    enable_gradient_checkpointing(unet)
    torch.manual_seed(0)
    found, others = loss_and_gradients(unet)
    assert found == pytest.approx(wanted, rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("denoiser", ["unet", "transformer"])
def test_random_state_is_kept_only_where_dropout_may_draw(denoiser, monkeypatch):
    """A CUDA graph can't keep it."""
    unet = tiny_world_model(denoiser=denoiser).unet
    wanted, gradients = loss_and_gradients(unet)
    enable_gradient_checkpointing(unet)
    kept, keep = [], torch.get_rng_state
    monkeypatch.setattr(torch, "get_rng_state", lambda: kept.append(1) or keep())
    found, others = loss_and_gradients(unet)
    assert not kept
    assert found == pytest.approx(wanted, rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, rtol=1e-4, atol=1e-6), name
    unet.train()
    loss(unet)
    assert kept


def test_layers_are_recomputed_once_and_the_first_block_twice(unet):
    """A second switch-on does not nest, and a call without gradients runs no layer twice."""
    enable_gradient_checkpointing(unet)
    enable_gradient_checkpointing(unet)
    calls: Counter[str] = Counter()
    first, *others = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    for kind, blocks in {"first": [first], "others": others}.items():
        for name in ("resnets", "temp_convs", "attentions", "temp_attentions"):
            for layer in (layer for block in blocks for layer in getattr(block, name, ())):
                # Inside of it: a layer's own hooks do not see that it is recomputed.
                inside = next(layer.children())
                inside.register_forward_hook(lambda *_, kind=kind: calls.update([kind]))
    loss(unet).backward()
    backward = Counter(calls)
    calls.clear()
    with torch.no_grad():
        loss(unet)
    assert calls.total() > 20
    assert backward["first"] == 3 * calls["first"]
    assert backward["others"] == 2 * calls["others"]
