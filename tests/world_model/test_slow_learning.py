from dataclasses import replace

import pytest
import torch

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.recipe import Conditions, Optimisation, WorldModelRecipe
from sfvgen_planner.world_model.slow_learning import SlowBatch, SlowObjective, slow_batches


def table(lengths=(30, 20)):
    """Frames whose latents carry their own row number, so that a window can be checked."""
    total = sum(lengths)
    rows = torch.arange(total, dtype=torch.float32)
    remaining = torch.cat([torch.arange(length - 1, -1, -1) for length in lengths])
    return FrameTable(
        frames=rows[:, None, None, None].expand(total, 4, 4, 4),
        actions=rows[:, None].expand(total, 4) / total,
        rewards=torch.zeros(total),
        successes=torch.full((total,), -1),
        instruction_ids=(torch.arange(total) // 10) % 3,
        remaining=remaining,
        elapsed=torch.arange(total) % 10,
        instructions=["", "return the red cube", "return the blue cube"],
    )


def recipe(**conditions):
    return WorldModelRecipe(
        conditions=Conditions(**conditions),
        optimisation=Optimisation(steps=1, batch_size=64, learning_rate=1e-3),
    )


@pytest.fixture(scope="module")
def model():
    return tiny_world_model()


def test_windows_are_consecutive_and_stay_inside_an_episode(model):
    draw = slow_batches(table(), model, recipe(language=0, single_past_frame=0.5))
    seen = set()
    for seed in range(20):
        batch = draw(torch.Generator().manual_seed(seed))
        rows = batch.latents[:, 0, :, 0, 0]
        seen.add(batch.num_past)
        assert rows.shape[1] == 4 + 8
        assert (rows.diff(dim=1) == 1).all()
        assert ((rows[:, 0] < 30) == (rows[:, -1] < 30)).all()
        # Action k leads from frame k to k + 1: the first generated frame's action is the one
        # taken at the last context frame.
        assert torch.allclose(batch.actions[:, :, 0] * 50, rows[:, batch.num_past - 1 : -1])
    assert seen == {1, 4}


def only(**mix):
    mixes = ["language", "actions", "language_and_actions", "none", "whole_sequence"]
    none = dict.fromkeys(mixes, 0)
    return recipe(**{**none, "single_past_frame": 0, **mix})


def is_told(model, batch):
    empty = model.tokenizer("", padding="max_length", max_length=16)["input_ids"]
    return (batch.token_ids != torch.tensor(empty)).any(dim=1)


@pytest.mark.parametrize("single_past_frame", [0, 1])
def test_a_language_sample_follows_its_instruction_and_then_stands_still(model, single_past_frame):
    draw = slow_batches(table(), model, only(language=1, single_past_frame=single_past_frame))
    batch = draw(torch.Generator().manual_seed(0))
    assert batch.num_past == (1 if single_past_frame else 4)
    ids, tokens = table().instruction_ids, model.tokenize(table().instructions)
    for rows, told in zip(batch.latents[:, 0, :, 0, 0].long(), batch.token_ids, strict=True):
        begin = rows[batch.num_past - 1]
        # The episodes end at rows 29 and 49, the instructions change at every tenth row.
        end = min(begin // 10 * 10 + 10, 29 if begin < 30 else 49)
        assert torch.equal(rows, (rows[0] + torch.arange(12)).clamp(max=end))
        assert begin < end
        assert ids[begin] > 0
        assert torch.equal(told, tokens[ids[begin]])
    assert not batch.actions_given.any()
    # The video is told from every moment of an instruction, its last step included.
    assert set((batch.latents[:, 0, batch.num_past - 1, 0, 0] % 10).tolist()) == set(range(10))


def test_some_steps_have_a_single_future_frame(model):
    draw = slow_batches(table(), model, recipe(single_past_frame=0.5, single_future_frame=0.5))
    batches = [draw(torch.Generator().manual_seed(seed)) for seed in range(40)]
    lengths = {(batch.num_past, batch.latents.shape[2] - batch.num_past) for batch in batches}
    assert lengths == {(1, 1), (1, 11), (4, 1), (4, 8)}
    assert all(batch.actions.shape[1] + batch.num_past == batch.noise.shape[2] for batch in batches)


def test_language_comes_with_actions_only_where_one_instruction_holds(model):
    draw = slow_batches(table(), model, only(language_and_actions=1))
    batch = draw(torch.Generator().manual_seed(0))
    first = batch.latents[:, 0, 3, 0, 0].long()
    last = batch.latents[:, 0, -2, 0, 0].long()
    ids = table().instruction_ids
    holds = (ids[first] == ids[last]) & (ids[first] > 0)
    assert torch.equal(is_told(model, batch), holds)
    assert batch.actions_given.all()
    assert holds.any()
    assert (~holds).any()


def test_without_instructions_language_samples_train_on_actions(model):
    untold = replace(table(), instruction_ids=torch.zeros(50, dtype=torch.long))
    batch = slow_batches(untold, model, only(language=1))(torch.Generator().manual_seed(0))
    assert batch.actions_given.all()
    assert not is_told(model, batch).any()
    assert (batch.latents[:, 0, :, 0, 0].diff(dim=1) == 1).all()


def test_mixes_come_as_often_as_asked(model):
    mixed = recipe(language=0, actions=0.5, language_and_actions=0, none=0.25, whole_sequence=0.25)
    draw = slow_batches(table(), model, mixed)
    batches = [draw(torch.Generator().manual_seed(seed)) for seed in range(50)]
    actions = torch.cat([batch.actions_given for batch in batches]).mean()
    context = torch.cat([batch.context_given for batch in batches]).mean()
    assert actions.item() == pytest.approx(0.5, abs=0.03)
    assert context.item() == pytest.approx(0.75, abs=0.03)


def test_too_short_episodes_are_told(model):
    with pytest.raises(SfvgenError, match="window of 12"):
        slow_batches(table(lengths=(10, 10)), model, recipe())


def batch_of(model, context_given=1.0, **changes):
    torch.manual_seed(0)
    latents = torch.randn(2, 4, 6, 4, 4)
    fields = {
        "latents": latents,
        "num_past": 2,
        "actions": torch.zeros(2, 4, 4),
        "token_ids": torch.zeros(2, 16, dtype=torch.long),
        "actions_given": torch.ones(2),
        "context_given": torch.full((2,), context_given),
        "noise": torch.randn_like(latents),
        "context_noise": torch.zeros_like(latents),
        "timesteps": torch.tensor([300.0, 900.0]),
    }
    return SlowBatch(**{**fields, **changes})


def test_loss_counts_future_frames_only_and_sees_a_clean_past(model, monkeypatch):
    """Eq. 1-2 against its closed form, with a denoiser that answers zero."""
    batch = batch_of(model)
    seen = {}

    def zero(window, *args):
        seen["window"] = window
        return torch.zeros_like(window)

    objective = SlowObjective(model)
    monkeypatch.setattr(objective, "_denoise", zero)
    loss = objective(*batch)
    future = (batch.noise - batch.latents)[:, :, 2:]
    assert loss.item() == pytest.approx(future.square().mean().item(), rel=1e-5)
    assert torch.equal(seen["window"][:, :, :2], batch.latents[:, :, :2])
    sigma = (batch.timesteps / 1000)[:, None, None, None, None]
    noised = (1 - sigma) * batch.latents + sigma * batch.noise
    assert torch.allclose(seen["window"][:, :, 2:], noised[:, :, 2:])


def test_whole_sequence_loss_counts_every_frame(model, monkeypatch):
    batch = batch_of(model, context_given=0.0)
    objective = SlowObjective(model)
    monkeypatch.setattr(objective, "_denoise", lambda window, *args: torch.zeros_like(window))
    everything = (batch.noise - batch.latents).square().mean().item()
    assert objective(*batch).item() == pytest.approx(everything, rel=1e-5)


def test_a_perfect_denoiser_has_no_loss(model, monkeypatch):
    batch = batch_of(model)
    objective = SlowObjective(model)
    monkeypatch.setattr(objective, "_denoise", lambda *args: batch.noise - batch.latents)
    assert objective(*batch).item() == pytest.approx(0, abs=1e-10)


def test_gradients_reach_the_denoiser_and_the_text_encoder_but_not_the_autoencoder(model):
    objective = SlowObjective(model)
    objective(*batch_of(model)).backward()
    for module in (model.unet, model.text_encoder):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    assert all(p.grad is None for p in model.vae.parameters())
    assert {id(p) for p in objective.parameters()} == {
        id(p) for module in (model.unet, model.text_encoder) for p in module.parameters()
    }


def test_cells_that_change_count_more_and_all_together_as_much(model):
    """Against the formula, cell by cell; a window that stands still counts as ever."""
    num_past, weight = 2, 3.0
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 4, 6, 4, 4, generator=generator)
    latents[1] = latents[1, :, :1]
    latents[2, :, :, 1:] = latents[2, :, :1, 1:]
    batch = SlowBatch(
        latents=latents,
        num_past=num_past,
        actions=torch.zeros(3, 4, 4),
        token_ids=model.tokenize([""] * 3),
        actions_given=torch.zeros(3),
        context_given=torch.ones(3),
        noise=torch.randn(latents.shape, generator=generator),
        context_noise=torch.zeros(latents.shape),
        timesteps=torch.tensor([300.0, 600.0, 900.0]),
    )
    objective = SlowObjective(model)
    objective._denoise = lambda window, *conditions: torch.zeros_like(window)
    errors, counted = objective.errors(batch, change_weight=weight)
    plain, as_many = objective.errors(batch)
    assert torch.equal(counted, as_many)
    assert torch.allclose(errors[1], plain[1])
    for sample in (0, 2):
        future = latents[sample, :, num_past:]
        change = (future - latents[sample, :, num_past - 1, None]).square().mean(dim=0)
        weights = 1 + weight * change / change.mean()
        weights = weights / weights.mean()
        wanted = (batch.noise - latents)[sample, :, num_past:].square()
        assert torch.allclose(errors[sample], (weights * wanted).sum(), rtol=1e-4)
    # Three of four rows of cells stand still: they count a quarter.
    assert change[:, 1:].abs().max() == 0
    assert torch.allclose(weights[:, 1:], torch.tensor(1 / (1 + weight)))
