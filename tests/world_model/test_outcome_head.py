import pytest
import torch

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.recipe import Optimisation, SuccessHeadRecipe
from sfvgen_planner.world_model.success_head import SuccessHead
from sfvgen_planner.world_model.success_learning import (
    SuccessObjective,
    _ended_instructions,
    success_batches,
)

OPTIMISATION = Optimisation(steps=1, batch_size=256, learning_rate=1e-3)
INSTRUCTIONS = ["", "put the red cube on the blue pad", "put the red cube on the red pad", "wait"]


def table():
    """Two episodes of 10 steps; each frame is a flat picture of its own row number."""
    rows = torch.arange(22, dtype=torch.uint8)
    return FrameTable(
        frames=(rows * 11)[:, None, None, None].expand(22, 64, 64, 3).contiguous(),
        actions=torch.zeros(22, 4),
        # Instruction 1 for 6 steps, then 2 for 4; the second episode has instruction 3 alone.
        instruction_ids=torch.tensor([1] * 6 + [2] * 4 + [0] + [3] * 10 + [0]),
        remaining=torch.cat([torch.arange(10, -1, -1)] * 2),
        elapsed=torch.tensor([*range(6), *range(4), 0, *range(10), 0]),
        instructions=INSTRUCTIONS,
    )


@pytest.fixture(scope="module")
def model():
    return tiny_world_model()


def test_ends_of_instructions_are_found():
    rows, ids, lengths = _ended_instructions(table())
    assert rows.tolist() == [6, 10, 21]
    assert ids.tolist() == [1, 2, 3]
    assert lengths.tolist() == [6, 4, 10]


def test_labels_say_whether_the_frame_achieves_the_instruction(model, monkeypatch):
    def row_number(frames):
        return (frames[:, :, :4, :4, :1] / 11).permute(0, 4, 1, 2, 3).expand(-1, 4, -1, -1, -1)

    monkeypatch.setattr(model, "encode", row_number)
    draw = success_batches(table(), model, SuccessHeadRecipe(optimisation=OPTIMISATION))
    latents, token_ids, achieved = draw(torch.Generator().manual_seed(0))
    rows = latents.mean(dim=(1, 2, 3)).round().int().tolist()
    tokens = model.tokenize(INSTRUCTIONS)
    told = [int((tokens == ids).all(dim=1).nonzero()[0, 0]) for ids in token_ids]
    # The last three frames of each instruction, the frame after its last action included.
    last_frames = {1: (4, 5, 6), 2: (8, 9, 10), 3: (19, 20, 21)}
    true_pairs = {(row, told) for told, rows in last_frames.items() for row in rows}
    for row, instruction, label in zip(rows, told, achieved.tolist(), strict=True):
        assert instruction > 0
        assert ((row, instruction) in true_pairs) == bool(label)
    assert 0.3 < achieved.mean().item() < 0.5
    # The most similar wrong instruction is told: another pad, not another kind of command.
    pairs = set(zip(rows, told, strict=True)) - true_pairs
    assert any((row, 2) in pairs for row in last_frames[1])
    assert any((row, 1) in pairs for row in last_frames[2])
    assert any((row, 3) in pairs for row in range(11, 15))


def test_one_instruction_is_not_enough(model):
    alone = table()
    alone.instruction_ids[alone.instruction_ids > 0] = 1
    with pytest.raises(SfvgenError, match="two different instructions"):
        success_batches(alone, model, SuccessHeadRecipe(optimisation=OPTIMISATION))


def test_learns_to_tell_which_colour_was_asked_for():
    """A task with a known answer: cell 0's first channel is positive exactly where token 1 fits."""
    torch.manual_seed(0)
    head = SuccessHead(4, vocab_size=3, hidden_size=16, num_blocks=1)
    optimiser = torch.optim.Adam(head.parameters(), lr=3e-3)
    objective = SuccessObjective(head)

    def draw():
        latents = torch.randn(64, 4, 4, 4)
        asked = torch.randint(1, 3, (64, 1))
        achieved = (latents[:, 0, 0, 0] > 0) == (asked[:, 0] == 1)
        return latents, asked.expand(-1, 2), achieved.float()

    for _ in range(400):
        loss = objective(*draw())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    latents, token_ids, achieved = draw()
    assert ((head(latents, token_ids) > 0) == (achieved > 0)).float().mean() > 0.85


def test_saved_and_loaded_it_answers_the_same(tmp_path):
    head = SuccessHead(4, vocab_size=10, hidden_size=16, num_blocks=1)
    latents, token_ids = torch.randn(2, 4, 4, 4), torch.randint(10, (2, 8))
    head.save_pretrained(tmp_path)
    assert torch.equal(
        SuccessHead.from_pretrained(tmp_path)(latents, token_ids), head(latents, token_ids)
    )
