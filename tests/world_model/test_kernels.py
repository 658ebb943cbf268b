from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.kernels import use_whole_products


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*arguments, **(kwargs or {}))


@pytest.mark.parametrize("frozen", [False, True])
def test_no_product_is_taken_in_many_small_ones(frozen):
    """Only attention itself multiplies batches; its inputs' biases take no kernel of their own.

    A single video's: of several, the inputs over time are copied anyhow.
    """
    unet = tiny_world_model().unet.requires_grad_(not frozen)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, unet.config.in_channels, 6, 4, 4, generator=generator)
    states = torch.randn(1, 16, 16, generator=generator)
    found = {}
    for whole in (False, True):
        if whole:
            use_whole_products(unet)
            use_whole_products(unet)
        with torch.no_grad(), Operations() as operations:
            found[whole] = unet(sample, 500, encoder_hidden_states=states).sample
        counts = operations.counts
        if not whole:
            before = counts
    assert torch.allclose(found[True], found[False], atol=1e-5)
    layers = sum(name.endswith("proj_in") for name, _ in unet.named_modules())
    assert before["add"] + before["add_"] - counts["add"] - counts["add_"] == layers > 0
    assert before["bmm"] - counts["bmm"] == (layers if frozen else 0)
    assert counts["addmm"] - before["addmm"] == layers
