import numpy as np
import pytest
import torch

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.heads import load_heads
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from sfvgen_planner.world_model.outcome_learning import (
    OutcomeBatch,
    OutcomeObjective,
    calibrate,
    fit_platt,
    outcome_batches,
)
from sfvgen_planner.world_model.recipe import Optimisation, OutcomeHeadRecipe

INSTRUCTIONS = ["", "put the red cube on the blue pad", "put the red cube on the red pad"]
# Two episodes of 10 steps. The first is told instruction 1 for 6 steps, then 2 for 4, and ends each
# in success; the second does without instruction for 5 steps and without a verdict for the rest.
TOLD = [1] * 6 + [2] * 4 + [0] + [0] * 5 + [1] * 5 + [0]
SUCCESSES = [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, -1] + [1] * 5 + [-1] * 6


def test_it_loads_from_a_checkpoint_without_inverse_dynamics(tmp_path):
    head = OutcomeHead(4, 4, 10, 8, 1)
    head.save_pretrained(tmp_path / "outcome_head")
    heads = load_heads(tmp_path)
    assert heads.inverse_dynamics is None
    assert heads.outcome_head is not None
    for name, value in head.state_dict().items():
        assert torch.equal(heads.outcome_head.state_dict()[name], value)
    (tmp_path / "empty").mkdir()
    assert load_heads(tmp_path / "empty") == (None, None, None)
    with pytest.raises(SfvgenError, match="there is no checkpoint folder"):
        load_heads(tmp_path / "nothing")


def recipe(batch_size=256, latent_noise=0.0):
    how = Optimisation(steps=1, batch_size=batch_size, learning_rate=1e-3)
    return OutcomeHeadRecipe(latent_noise=latent_noise, optimisation=how)


def table():
    """Latents are flat pictures of their own row number; rewards tell it too."""
    rows = torch.arange(22)
    return FrameTable(
        frames=rows[:, None, None, None].expand(22, 4, 4, 4).half(),
        actions=torch.zeros(22, 4),
        rewards=rows / 10,
        successes=torch.tensor(SUCCESSES),
        instruction_ids=torch.tensor(TOLD),
        remaining=torch.cat([torch.arange(10, -1, -1)] * 2),
        elapsed=torch.zeros(22, dtype=torch.long),
        instructions=INSTRUCTIONS,
    )


def tiny_head(**kwargs):
    torch.manual_seed(0)
    sizes = {"latent_channels": 4, "latent_side": 4, "vocab_size": 600, "hidden_size": 16}
    return OutcomeHead(**{**sizes, "num_blocks": 1, **kwargs})


@pytest.fixture(scope="module")
def model():
    return tiny_world_model()


@pytest.mark.parametrize("others", [-1, 1])
def test_words_of_another_model_are_refused(model, others):
    num_tokens = len(model.tokenizer)
    assert torch.equal(
        tiny_head(vocab_size=num_tokens).tokenize(model, INSTRUCTIONS), model.tokenize(INSTRUCTIONS)
    )
    with pytest.raises(SfvgenError, match="the head of the same checkpoint"):
        tiny_head(vocab_size=num_tokens + others).tokenize(model, INSTRUCTIONS)


def test_every_label_is_the_simulators(model):
    batch = outcome_batches(table(), model, recipe(2000))(torch.Generator().manual_seed(0))
    rows = batch.before.mean(dim=(1, 2, 3)).round().int()
    assert torch.equal(batch.after.mean(dim=(1, 2, 3)).round().int(), rows + 1)
    # Only steps with an instruction and a verdict.
    assert set(rows.tolist()) == set(range(10))
    assert batch.successes.tolist() == [SUCCESSES[row] for row in rows]
    assert torch.allclose(batch.rewards, rows / 10)
    tokens = model.tokenize(INSTRUCTIONS)
    assert torch.equal(batch.token_ids, tokens[torch.tensor(TOLD)[rows.long()]])
    assert 0.45 < batch.successes.mean() < 0.55


def test_weights_undo_the_balance(model):
    batch = outcome_batches(table(), model, recipe(20_000))(torch.Generator().manual_seed(0))
    # The mean reward of all steps with a verdict: rows 0 to 9.
    assert float((batch.weights * batch.rewards).mean()) == pytest.approx(0.45, abs=0.01)
    assert float(batch.weights.mean()) == pytest.approx(1, abs=0.02)


def test_latents_get_noise_up_to_its_largest_level(model):
    exact, noisy = (
        outcome_batches(table(), model, recipe(500, noise))(torch.Generator().manual_seed(0))
        for noise in (0.0, 0.2)
    )
    level = (noisy.after - exact.after).std(dim=(1, 2, 3))
    assert 0.4 < float((level == 0).float().mean()) < 0.6
    assert 0.15 < float(level.max()) < 0.3


@pytest.mark.parametrize("successes", [[-1] * 22, [0] * 22, [1] * 22])
def test_data_without_both_verdicts_is_refused(model, successes):
    told = table()
    told.successes[:] = torch.tensor(successes)
    with pytest.raises(SfvgenError, match=r"info\['success'\]"):
        outcome_batches(told, model, recipe())


def test_the_loss_is_that_of_its_definition():
    head = tiny_head(reward_scale=2.0)
    generator = torch.Generator().manual_seed(1)
    before, after = torch.randn(2, 6, 4, 4, 4, generator=generator)
    token_ids = torch.randint(600, (6, 5), generator=generator)
    successes, rewards = torch.tensor([0.0, 1, 0, 1, 1, 0]), torch.arange(6.0)
    weights = torch.tensor([1.5, 0.5, 1.5, 0.5, 0.5, 1.5])
    logits, predicted = (
        values.detach().numpy().astype(float) for values in head(before, after, token_ids)
    )
    probability = 1 / (1 + np.exp(-logits))
    entropy = -np.log(np.where(successes.numpy() > 0, probability, 1 - probability)).mean()
    error = (weights.numpy() * ((predicted - np.arange(6)) / 2) ** 2).mean()
    loss = OutcomeObjective(head)(
        *OutcomeBatch(before, after, token_ids, successes, rewards, weights)
    )
    assert loss.item() == pytest.approx(entropy + error, rel=1e-5)


def test_learns_a_task_with_a_known_answer():
    """Success: cell 0 is positive exactly where token 1 fits. Reward: how much it rose or fell."""
    head = tiny_head(vocab_size=3, reward_scale=1.5)
    optimiser = torch.optim.Adam(head.parameters(), lr=5e-3)
    objective = OutcomeObjective(head)

    def draw():
        before, after = torch.randn(2, 48, 4, 4, 4)
        asked = torch.randint(1, 3, (48, 1))
        sign = 1.0 - 2.0 * (asked[:, 0] == 2)
        value = sign * after[:, 0, 0, 0]
        rewards = value - sign * before[:, 0, 0, 0]
        return OutcomeBatch(
            before, after, asked.expand(-1, 2), (value > 0).float(), rewards, torch.ones(48)
        )

    for _ in range(300):
        loss = objective(*draw())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    batch = draw()
    logits, rewards = head(batch.before, batch.after, batch.token_ids)
    assert ((logits > 0) == (batch.successes > 0)).float().mean() > 0.85
    assert (rewards - batch.rewards).square().mean() < 0.5 * batch.rewards.var()


def test_success_of_a_frame_is_that_of_a_step_which_ends_in_it():
    head = tiny_head(temperature=2.0, bias=-1.0)
    before, after, token_ids = torch.randn(3, 4, 4, 4), torch.randn(3, 4, 4, 4), torch.ones(3, 5)
    logits, _ = head(before, after, token_ids.long())
    assert torch.allclose(logits, head.success_logits(after, token_ids.long()), atol=1e-6)
    probability = head.success_logits(after, token_ids.long()).sigmoid()
    assert torch.allclose(probability, torch.sigmoid(logits), atol=1e-6)
    plain = tiny_head().success_logits(after, token_ids.long())
    assert torch.allclose(logits, plain / 2 - 1, atol=1e-6)


def test_platt_scaling_finds_the_line_that_made_the_labels():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200_000, generator=generator)
    labels = torch.rand(200_000, generator=generator) < torch.sigmoid(0.4 * logits - 1)
    scale, bias = fit_platt(logits, labels.float())
    assert scale == pytest.approx(0.4, abs=0.01)
    assert bias == pytest.approx(-1, abs=0.02)


def test_calibration_is_fitted_on_the_steps_with_a_verdict_and_stays_with_the_head(model, tmp_path):
    head = tiny_head()
    calibrate(head, table(), model)
    tokens = model.tokenize(INSTRUCTIONS)[torch.tensor(TOLD[:10])]
    after = table().frames[1:11].float()
    probability = head.success_logits(after, tokens).sigmoid()
    # At the optimum the mean probability is that of Platt's targets, 4/5 and 1/9 here.
    assert probability.mean().item() == pytest.approx((3 * 4 / 5 + 7 / 9) / 10, abs=1e-4)
    head.save_pretrained(tmp_path)
    loaded = OutcomeHead.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.success_logits(after, tokens).sigmoid(), probability)
    # A second fit starts from the head's own logits, not from calibrated ones.
    before = head.config.temperature, head.config.bias
    calibrate(head, table(), model)
    assert (head.config.temperature, head.config.bias) == pytest.approx(before)


def test_nothing_is_calibrated_without_both_verdicts(model):
    head = tiny_head()
    told = table()
    told.successes[told.successes > 0] = 0
    calibrate(head, told, model)
    assert (head.config.temperature, head.config.bias) == (1.0, 0.0)


def test_saved_and_loaded_it_answers_the_same(tmp_path):
    head = tiny_head(reward_scale=0.3)
    before, after, token_ids = *torch.randn(2, 2, 4, 4, 4), torch.randint(10, (2, 8))
    head.save_pretrained(tmp_path)
    again = OutcomeHead.from_pretrained(tmp_path)
    assert all(map(torch.equal, again.state_dict().values(), head.state_dict().values()))
    # Where weights lie in memory can turn the last bit.
    assert all(map(torch.allclose, again(before, after, token_ids), head(before, after, token_ids)))


def test_latents_of_another_model_are_refused():
    token_ids = torch.ones(2, 5).long()
    with pytest.raises(SfvgenError, match=r"shape \(4, 4, 4\), got \(8, 4, 4\): take the head of"):
        tiny_head().success_logits(torch.zeros(2, 8, 4, 4), token_ids)
