from collections import Counter
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.memory import EpisodicMemory, MemoryConfig
from sfvgen_planner.memory.adapter import Adapters, peft_config
from sfvgen_planner.memory.config import TEMPORAL_LAYERS, TEMPORAL_VALUES
from sfvgen_planner.memory.layer_codes import LayerCodes
from sfvgen_planner.memory.layers import MemoryLinear
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.sampling import nothing_to_hear

CODED = MemoryConfig(
    rank=3,
    target_modules=TEMPORAL_VALUES,
    position_code=True,
    num_time_codes=4,
    rule="normalised",
)


class Toy(nn.Module):
    """One linear layer in the place of a denoiser."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 6)

    def forward(self, x):
        return self.layer(x)


def toy(num_cells=2, instruction_code=False):
    model = Toy()
    model.layer.num_cells = num_cells
    config = MemoryConfig(
        rank=3,
        target_modules="layer",
        position_code=True,
        num_time_codes=4,
        instruction_code=instruction_code,
        rule="normalised",
    )
    settings = peft_config(None, MemoryConfig(rank=3, target_modules="layer"))
    settings.memory, settings.text_size = config, 7
    adapted = get_peft_model(model, settings)
    for parameter in adapted.parameters():
        nn.init.normal_(parameter)
    return adapted, adapted.base_model.model.layer


def hear(layer, states):
    """What happens when a denoiser is called whose only adapted layer this is."""
    LayerCodes([layer]).listen(None, (), {"encoder_hidden_states": states[:, None]})


@pytest.mark.parametrize("chunk", [0, 2, 3, 9])
def test_the_layer_is_its_formula(chunk):
    """B ((A h + P[cell]) * (1 + W[chunk]) + C[chunk]), token by token."""
    adapted, layer = toy(num_cells=2)
    fast = torch.randn(3, 6, 3)
    layer.place(None, fast, torch.tensor([1, chunk, 0]))
    hear(layer, torch.randn(6, 7))
    # 3 memories of 2 samples of 2 cells, 4 frames.
    x = torch.randn(12, 4, 5)
    out = adapted(x)
    a = layer.lora_A["default"].weight
    for row in range(12):
        memory, cell = row // 4, row % 2
        code = min([1, chunk, 0][memory], 3)
        for frame in range(4):
            hidden = a @ x[row, frame] + layer.lora_position_code["default"][cell]
            hidden = hidden * (1 + layer.lora_time_scale["default"][code])
            hidden = hidden + layer.lora_time_shift["default"][code]
            wanted = layer.base_layer(x[row, frame]) + fast[memory] @ hidden
            assert torch.allclose(out[row, frame], wanted, atol=1e-5)


def test_the_instruction_scales_and_shifts_too():
    """B ((A h + P[cell]) * (1 + W[chunk] + s V) + C[chunk] + s D), with s heard by each sample."""
    adapted, layer = toy(num_cells=2, instruction_code=True)
    fast, heard = torch.randn(3, 6, 3), torch.randn(6, 7)
    layer.place(None, fast, torch.tensor([1, 3, 0]))
    hear(layer, heard)
    x = torch.randn(12, 4, 5)
    out = adapted(x)
    codes = {
        name: getattr(layer, f"lora_{name}")["default"]
        for name in ("time_scale", "time_shift", "instruction_scale", "instruction_shift")
    }
    for row in range(12):
        memory, sample, cell = row // 4, row // 2, row % 2
        chunk = [1, 3, 0][memory]
        hidden = (
            x[row] @ layer.lora_A["default"].weight.T + layer.lora_position_code["default"][cell]
        )
        hidden = hidden * (
            1 + codes["time_scale"][chunk] + heard[sample] @ codes["instruction_scale"]
        )
        hidden = hidden + codes["time_shift"][chunk] + heard[sample] @ codes["instruction_shift"]
        wanted = layer.base_layer(x[row]) + hidden @ fast[memory].T
        assert torch.allclose(out[row], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_what_a_memory_gives_depends_on_the_instruction(kind):
    """Through the adapters alone: the slow weights are told nothing different."""
    model = tiny_world_model(denoiser=kind)
    adapters = Adapters(model, replace(CODED, instruction_code=True))
    torch.manual_seed(0)
    for name, parameter in model.unet.named_parameters():
        if "lora_instruction" in name:
            nn.init.normal_(parameter)
        elif "attn2.to_out" in name or "attn2.to_v" in name:
            # Cross-attention says the same, whatever it is told.
            nn.init.zeros_(parameter)
    fast = {name: torch.randn_like(value) / 10 for name, value in adapters.start(2).items()}
    window, texts = torch.randn(2, 4, 6, 4, 4), torch.randn(2, 3, 16)

    def denoise(states):
        with torch.no_grad():
            return model.denoise(window, torch.tensor([500.0, 900.0]), 2, states)

    other = torch.stack([texts[0], torch.randn(3, 16)])
    assert torch.allclose(denoise(texts), denoise(other), atol=1e-6)
    adapters.place(fast, torch.tensor([1, 2]))
    before, after = denoise(texts), denoise(other)
    assert torch.allclose(before[0], after[0], atol=1e-6)
    assert (before[1] - after[1]).abs().max() > 1e-3
    adapters.place(None)
    adapters.detach()
    assert not model.unet._forward_pre_hooks
    assert not model.unet._forward_hooks


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_a_larger_memory_begins_as_the_trained_one(kind):
    """Fresh ones read alike, at every chunk; the trained codes are in their places."""
    small, large = CODED, replace(CODED, rank=5, num_time_codes=6, instruction_code=True)
    assert large.can_continue(small)
    assert not small.can_continue(large)
    model = tiny_world_model(denoiser=kind)
    adapters = Adapters(model, small)
    torch.manual_seed(0)
    for parameter in adapters.parameters():
        nn.init.normal_(parameter)
    trained = {name: value.clone() for name, value in adapters.tensors().items()}
    window, texts = torch.randn(3, 4, 6, 4, 4), torch.randn(3, 3, 16)

    def denoise(adapters):
        with torch.no_grad(), adapters.placed(adapters.start(3), torch.tensor([1, 3, 5])):
            return model.denoise(window, torch.tensor([500.0, 900.0, 20.0]), 2, texts)

    before = denoise(adapters)
    adapters.detach()
    grown = Adapters(model, large)
    grown.load_smaller(trained)
    assert torch.allclose(denoise(grown), before, atol=1e-5)
    for name, value in grown.tensors().items():
        if "lora_time" in name:
            assert torch.equal(value[:, :3], trained[name][[0, 1, 2, 3, 3, 3]])
        elif "lora_position" in name or "lora_A" in name:
            assert value.abs().sum(dim=int("lora_A" not in name)).all()


def test_without_memory_in_place_the_layer_is_the_slow_one():
    adapted, layer = toy()
    x = torch.randn(4, 3, 5)
    assert torch.equal(adapted(x), layer.base_layer(x))


def test_a_batch_that_the_memories_cannot_share_is_told():
    adapted, layer = toy()
    layer.place(None, torch.randn(3, 6, 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(SfvgenError, match="3 memories"):
        adapted(torch.randn(4, 3, 5))


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_plain_adapters_are_those_of_peft(kind):
    """One memory of the paper's kind, convolutions included, against PEFT's own LoRA."""
    model, peer = tiny_world_model(denoiser=kind), tiny_world_model(denoiser=kind)
    adapters = Adapters(model, MemoryConfig(rank=4))
    get_peft_model(peer.unet, LoraConfig(r=4, lora_alpha=4, target_modules=TEMPORAL_LAYERS))
    torch.manual_seed(0)
    fast = {name: torch.randn_like(value) / 10 for name, value in adapters.start(1).items()}
    adapters.place(fast, torch.tensor([1]))
    parameters = dict(peer.unet.named_parameters())
    for name, value in fast.items():
        short = name.removeprefix("base_model.model.").replace(".weight", ".default.weight")
        parameters[short].data.copy_(value[0])
    window = torch.randn(2, 4, 6, 4, 4)
    given = (window, torch.tensor([500.0, 900.0]), 2, torch.randn(2, 3, 16))
    with torch.no_grad():
        ours, theirs = model.denoise(*given), peer.denoise(*given)
        adapters.place(None)
        slow = model.denoise(*given)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert (ours - slow).abs().max() > 1e-2


class Kernels(TorchDispatchMode):
    """Counts what works on tensors; views do not."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aliases = [value.alias_info for value in function._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            self.names.append(function._overloadpacket.__name__)
        return function(*args, **kwargs or {})


def test_imagining_takes_two_kernels_a_layer_and_no_copies():
    """One product in place of the layer's own, and the sum with what it reads of each cell.

    In the model's own precision.
    """
    model = tiny_world_model().to(torch.bfloat16)
    given = (
        torch.randn(2, 4, 6, 4, 4, dtype=torch.bfloat16),
        torch.tensor([500.0, 900.0]),
        2,
        torch.randn(2, 3, 16, dtype=torch.bfloat16),
    )
    with torch.no_grad(), Kernels() as slow:
        model.denoise(*given)
    memory = EpisodicMemory(model, replace(CODED, instruction_code=True))
    past, chunk = torch.randn(4, 4, 4, 4), torch.randn(4, 8, 4, 4)
    memory.write(past, chunk)
    num_layers = sum(isinstance(module, MemoryLinear) for module in model.unet.modules())
    with torch.no_grad():
        heard = model.hear(given[3])
        with heard, Kernels() as remembering:
            model.denoise(*given)
    added = Counter(remembering.names) - Counter(slow.names)
    assert added["add_"] == num_layers > 10
    # A product each, in place of as many others.
    assert added.keys() == {"bmm", "add_"}
    assert len(remembering.names) <= len(slow.names) + num_layers


@pytest.mark.parametrize("kind", ["unet", "transformer"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"num_time_slots": 2}, {"rule": "adam", "learning_rate": 0.05}],
    ids=["adapters", "table", "own_a"],
)
def test_what_is_heard_once_is_what_each_call_hears(kind, settings):
    """3 memories of which one is empty, 2 samples each, with instructions of their own."""
    model = tiny_world_model(denoiser=kind).to(torch.float64)
    config = replace(CODED, instruction_code=True, **settings)
    memory = EpisodicMemory(model, config, num_memories=3)
    for parameter in memory._adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    memory.reset()
    for written in ([0, 1], [1]):
        windows = torch.randn(len(written), 4, 12, 4, 4, dtype=torch.float64)
        memory.write_batch(windows[:, :, :4], windows[:, :, 4:], memories=written)
    states = torch.randn(6, 3, 16, dtype=torch.float64)
    given = (torch.randn(6, 4, 5, 4, 4, dtype=torch.float64), torch.full((6,), 700.0), 2, states)
    with torch.no_grad():
        each_time = model.denoise(*given)
        heard = model.hear(states)
        for _ in range(2):
            with heard:
                once = model.denoise(*given)
            assert torch.allclose(once, each_time, atol=1e-6)
        with model.without_memory():
            assert not torch.allclose(model.denoise(*given), each_time, atol=1e-3)
        # Nothing stays heard.
        assert torch.equal(model.denoise(*given), each_time)
    past = torch.randn(6, 4, 4, 4, 4)
    told = {"instruction": ["put", "move", None] * 2, "guidance_scale": 2.0}
    videos = []
    for hear in (model.hear, nothing_to_hear):
        model.hear = hear
        generator = torch.Generator().manual_seed(0)
        videos.append(model(past, generator=generator, output_type="latent", **told).latents)
    assert torch.allclose(*videos, atol=1e-5)


def test_gradients_of_actions_flow_through_what_each_call_hears():
    model = tiny_world_model()
    memory = EpisodicMemory(model, replace(CODED, instruction_code=True))
    past, chunk = torch.randn(4, 4, 4, 4), torch.randn(4, 8, 4, 4)
    memory.write(past, chunk)
    actions = torch.zeros(1, 8, model.action_size, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    slope = model(past[None], actions=actions, generator=generator).latents.sum()
    slope.backward()
    assert actions.grad.abs().sum() > 0
    generator.manual_seed(0)
    plain = model(past[None], actions=actions.detach(), generator=generator).latents.sum()
    assert torch.allclose(slope, plain, rtol=1e-4)


def only_cell(layer, cell):
    """A memory that speaks through the code of one cell."""
    layer.lora_A["default"].weight.data.zero_()
    code = layer.lora_position_code["default"].data
    code.zero_()
    code[cell] = 1.0


@pytest.mark.parametrize(
    ("module", "side"), [("transformer_in", 4), ("mid_block.temp_attentions.0", 2)]
)
def test_the_unet_keeps_the_place_of_a_cell_at_both_resolutions(module, side):
    model = tiny_world_model()
    adapters = Adapters(model, CODED)
    target = model.unet.get_submodule(module)
    for cell in range(side * side):
        layer = target.get_submodule("transformer_blocks.0.attn1.to_v")
        only_cell(layer, cell)
        seen = []
        hook = target.register_forward_hook(lambda *args, seen=seen: seen.append(args[2][0]))
        given = (torch.randn(2, 4, 3, 4, 4), torch.tensor([500.0] * 2), 1, torch.randn(2, 3, 16))
        with torch.no_grad():
            model.denoise(*given)
            layer.place(
                None, torch.ones(1, *layer.lora_B["default"].weight.shape), torch.tensor([1])
            )
            model.denoise(*given)
        layer.place(None, None, None)
        hook.remove()
        change = (seen[1] - seen[0]).abs().amax(dim=(0, 1))
        assert change.shape == (side, side)
        assert change.flatten().nonzero().flatten().tolist() == [cell]
    adapters.detach()


def test_the_transformer_keeps_the_place_of_a_patch():
    """After the last temporal block nothing mixes patches: the change shows in the output."""
    model = tiny_world_model(denoiser="transformer")
    Adapters(model, CODED)
    layer = model.unet.temporal_transformer_blocks[1].attn1.to_v
    given = (torch.randn(2, 4, 3, 4, 4), torch.tensor([500.0] * 2), 1, torch.randn(2, 3, 16))
    for cell in range(4):
        only_cell(layer, cell)
        with torch.no_grad():
            before = model.denoise(*given)
            layer.place(None, torch.ones(1, 32, 3), torch.tensor([1]))
            after = model.denoise(*given)
        layer.place(None, None, None)
        change = (after - before).abs().amax(dim=(0, 1, 2))
        patches = change.unflatten(0, (2, 2)).unflatten(2, (2, 2)).amax(dim=(1, 3))
        assert patches.flatten().nonzero().flatten().tolist() == [cell]


def test_convolutions_take_no_codes():
    config = MemoryConfig(target_modules=TEMPORAL_LAYERS, position_code=True)
    with pytest.raises(SfvgenError, match="without convolutions"):
        Adapters(tiny_world_model(), config)


def test_tensors_can_be_put_back():
    adapters = Adapters(tiny_world_model(denoiser="transformer"), CODED, seed=1)
    other = Adapters(tiny_world_model(denoiser="transformer"), CODED, seed=2)
    assert any("position_code" in name for name in adapters.tensors())
    other.load(adapters.tensors())
    for name, value in adapters.tensors().items():
        assert torch.equal(other.tensors()[name], value)
