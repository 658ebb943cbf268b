"""A memory's table of what stood where and when."""

import re
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from torch import nn

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.memory import EpisodicMemory, MemoryConfig, memory_variant
from sfvgen_planner.memory.adapter import Adapters, peft_config
from sfvgen_planner.memory.layer_codes import LayerCodes
from sfvgen_planner.memory.rewritten_batches import RewrittenBatches
from sfvgen_planner.memory.slow_fast import LoopBatches, SlowFastObjective
from sfvgen_planner.memory.table_grid import TableGrid
from sfvgen_planner.world_model import tiny_world_model
from tests.loop_tables import TABLE, recipe

CODED = replace(
    memory_variant("ours"), rank=3, num_time_codes=4, instruction_code=True, num_noise_draws=1
)
CONFIG = replace(CODED, num_time_slots=2)


class OneLayer(nn.Module):
    """One linear layer in the place of a denoiser, which sees 2 cells."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 6)
        self.layer.num_cells = 2

    def forward(self, x):
        return self.layer(x)


def test_a_cell_reads_the_slots_that_chunk_and_instruction_open():
    """The table's part beside the adapter's, with slots of which the last written has age 0:

    2 (1 + heard U) sum_s (G[chunk % slots, s] + heard V[s] + heard R[age of s]) T[memory, s, cell]
    """
    torch.manual_seed(0)
    settings = peft_config(None, MemoryConfig(rank=3, target_modules="layer"))
    config = replace(CONFIG, target_modules="layer", num_time_slots=3)
    settings.memory, settings.text_size, settings.latent_size = config, 7, (1, 2)
    adapted = get_peft_model(OneLayer(), settings)
    for parameter in adapted.parameters():
        nn.init.normal_(parameter)
    layer = adapted.base_model.model.layer
    chunks = [1, 5, 9]
    # The last written slots are 0 (chunk 0), 1 (chunk 4) and 2 (chunk 8).
    ages = [[0, 2, 1], [1, 0, 2], [2, 1, 0]]
    b, table, heard = torch.randn(3, 6, 3), torch.randn(3, 3, 2, 6), torch.randn(6, 7)
    # 3 memories of 2 samples of 2 cells, 4 frames.
    x = torch.randn(12, 4, 5)
    codes = LayerCodes([layer])

    def call(table):
        layer.place(None, b, torch.tensor(chunks), table)
        codes.listen(None, (), {"encoder_hidden_states": heard[:, None]})
        return adapted(x)

    read = call(table) - call(None)
    gates = layer.lora_slot_gates["default"]
    for row in range(12):
        memory, sample, cell = row // 4, row // 2, row % 2
        opened = gates[chunks[memory] % 3] + heard[sample] @ layer.lora_instruction_gates["default"]
        opened = opened + (heard[sample] @ layer.lora_age_gates["default"])[ages[memory]]
        channels = 1 + heard[sample] @ layer.lora_channel_code["default"]
        wanted = 2 * channels * (opened @ table[memory, :, cell])
        assert torch.allclose(read[row], wanted.expand(4, 6), atol=1e-3)


@pytest.mark.parametrize(
    ("num_cells", "latent_size", "entries"), [(24, (6, 4), (3, 2)), (6, (6, 4), (2, 1))]
)
def test_neighbouring_cells_share_an_entry_where_the_latents_are_finer(
    num_cells, latent_size, entries
):
    """At full resolution and at half, with squares of 2x2 cells that the border may cut."""
    grid = TableGrid.of_layer(num_cells, latent_size, table_side=3)
    assert grid.entries == entries
    read = torch.randn(5, entries[0] * entries[1], 7)
    spread = grid.spread(read).unflatten(1, (grid.height, grid.width))
    for row in range(grid.height):
        for column in range(grid.width):
            entry = row // 2 * entries[1] + column // 2
            assert torch.equal(spread[:, row, column], read[:, entry])


def test_a_table_does_not_grow_with_the_resolution():
    coarse = replace(CONFIG, table_side=2)
    sizes = {}
    for side, config in ((4, CONFIG), (4, coarse), (8, coarse)):
        model = tiny_world_model(image_size=16 * side)
        assert model.latent_size[1:] == (side, side)
        memory = EpisodicMemory(model, config)
        memory.write(torch.randn(4, 4, side, side), torch.randn(4, 8, side, side))
        written = tables(memory)
        assert all(table[0].any() for table in written)
        sizes[side, config.table_side] = sum(table.numel() for table in written)
        memory.detach()
    assert sizes[8, 2] == sizes[4, 2] == sizes[4, 8] / 4


def test_a_table_needs_layers_that_see_cells():
    with pytest.raises(SfvgenError, match="sees 5 rows of latents of 4x4 cells"):
        TableGrid.of_layer(5, (4, 4), table_side=8)


def tables(memory):
    return [value for name, value in memory.state().items() if name.endswith("lora_table")]


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_chunks_are_written_in_turn_into_slots_of_their_own(kind):
    memory = EpisodicMemory(tiny_world_model(denoiser=kind), CONFIG)
    past, chunks = torch.randn(4, 4, 4, 4), torch.randn(3, 4, 8, 4, 4)
    assert not any(table.any() for table in tables(memory))
    memory.write(past, chunks[0])
    first = tables(memory)
    assert all(table[0].any() and not table[1].any() for table in first)
    memory.write(past, chunks[1])
    second = tables(memory)
    assert all(torch.equal(old[0], new[0]) for old, new in zip(first, second, strict=True))
    assert all(new[1].any() for new in second)
    memory.write(past, chunks[2])
    third = tables(memory)
    assert all(torch.equal(old[1], new[1]) for old, new in zip(second, third, strict=True))
    assert not any(torch.equal(old[0], new[0]) for old, new in zip(second, third, strict=True))


def test_a_saved_table_gives_the_same_frames_alone_and_among_others(tmp_path):
    model = tiny_world_model()
    memory = EpisodicMemory(model, CONFIG, num_memories=2)
    chunks = torch.randn(2, 4, 8, 4, 4)
    past = torch.randn(2, 4, 4, 4, 4)
    memory.write_batch(past, chunks)
    window, texts = torch.randn(2, 4, 6, 4, 4), torch.randn(2, 3, 16)

    def denoise(rows):
        with torch.no_grad():
            return model.denoise(window[rows], torch.full((len(rows),), 900.0), 2, texts[rows])

    both = denoise([0, 1])
    memory.save_pretrained(tmp_path / "second", index=1)
    memory.detach()
    slow = denoise([0, 1])
    alone = EpisodicMemory(model, CONFIG)
    alone.load_pretrained(tmp_path / "second")
    assert torch.allclose(denoise([1]), both[1:], atol=1e-5)
    assert (both - slow).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-2
    alone.detach()


def test_a_trained_memory_can_be_given_an_empty_table():
    """A fresh one reads as before; one table can't go on as another."""
    assert CONFIG.can_continue(CODED)
    assert not CODED.can_continue(CONFIG)
    assert not replace(CONFIG, num_time_slots=3).can_continue(CONFIG)
    assert not replace(CONFIG, table_side=2).can_continue(CONFIG)
    assert replace(CONFIG, table_side=2).can_continue(CODED)
    model = tiny_world_model()
    adapters = Adapters(model, CODED)
    torch.manual_seed(0)
    for parameter in adapters.parameters():
        nn.init.normal_(parameter)
    trained = {name: value.clone() for name, value in adapters.tensors().items()}
    given = (torch.randn(3, 4, 6, 4, 4), torch.tensor([500.0, 900.0, 20.0]), 2)
    texts = torch.randn(3, 3, 16)

    def denoise(adapters):
        with torch.no_grad(), adapters.placed(adapters.start(3), torch.tensor([0, 3, 5])):
            return model.denoise(*given, texts)

    before = denoise(adapters)
    adapters.detach()
    with_table = Adapters(model, CONFIG)
    with_table.load_smaller(trained)
    assert torch.allclose(denoise(with_table), before, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_time_slots": -1},
        {"position_code": False},
        {"num_time_codes": 0},
        {"instruction_code": False},
        {"rule": "adam"},
    ],
)
def test_a_table_needs_the_other_codes(changes):
    with pytest.raises(SfvgenError, match="num_time_slots"):
        replace(CONFIG, **changes)


@pytest.mark.parametrize("second_order_writes", [0, 1])
def test_the_loop_learns_what_to_read(second_order_writes):
    """What instructions open is zero at first: only a loss under the memory moves it."""
    settings = recipe(
        memory={"rank": 2, "num_time_slots": 2, "instruction_code": True, "num_noise_draws": 1},
        stage={"num_memories": 2, "second_order_writes": second_order_writes},
        change_weight=1.0,
    )
    model, (stage,) = tiny_world_model(denoiser="transformer"), settings.stages
    adapters = Adapters(model, settings.memory_config)
    objective = SlowFastObjective(model, adapters, settings.memory_config, change_weight=1.0)
    batches = LoopBatches(TABLE, model, settings, stage)
    draw = batches
    if second_order_writes:
        draw = RewrittenBatches(batches, objective, second_order_writes, torch.no_grad)
    objective(*draw(torch.Generator().manual_seed(0))).backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.unet.named_parameters()
        if re.search("lora_(instruction_gates|age_gates|channel_code|table)", name)
    }
    assert len(gradients) >= 16
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
