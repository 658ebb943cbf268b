"""The temporal distance on frames whose numbers of steps apart are known."""

import math

import pytest
import torch

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.heads import load_heads
from sfvgen_planner.world_model.recipe import Optimisation, TemporalDistanceRecipe
from sfvgen_planner.world_model.temporal_distance import TemporalDistance
from sfvgen_planner.world_model.temporal_learning import (
    DistanceBatch,
    DistanceObjective,
    distance_batches,
)

NUM_EPISODES, NUM_CELLS = 4, 16
MAX_FRAMES = 12


def table(frames, num_episodes):
    """Latents `(N, 4, 4, 4)` of episodes of the same length."""
    nothing = torch.zeros(len(frames), dtype=torch.long)
    length = len(frames) // num_episodes
    return FrameTable(
        frames=frames.half(),
        actions=torch.zeros(len(frames), 4),
        rewards=torch.zeros(len(frames)),
        successes=nothing - 1,
        instruction_ids=nothing,
        remaining=torch.arange(length - 1, -1, -1).repeat(num_episodes),
        elapsed=nothing,
        instructions=[""],
    )


def numbered_table(num_rows=22, num_episodes=2):
    """Latents are flat pictures of their own row number."""
    rows = torch.arange(num_rows)
    return table(rows[:, None, None, None].expand(-1, 4, 4, 4), num_episodes)


def walk():
    """A dot goes from cell to cell, one a frame, in a colour (channel) of its own each episode.

    Latents `(episodes, cells, 4, 4, 4)`.
    """
    dots = 3 * torch.eye(NUM_CELLS).view(NUM_CELLS, 4, 4)
    frames = torch.zeros(NUM_EPISODES, NUM_CELLS, 4, 4, 4)
    for episode in range(NUM_EPISODES):
        frames[episode, :, episode] = dots
    return frames


def recipe(batch_size=256, latent_noise=0.0):
    how = Optimisation(steps=1, batch_size=batch_size, learning_rate=1e-3)
    return TemporalDistanceRecipe(latent_noise=latent_noise, optimisation=how)


def tiny_head(max_frames=MAX_FRAMES):
    torch.manual_seed(0)
    return TemporalDistance(4, 4, hidden_size=16, num_blocks=1, max_frames=max_frames)


@pytest.fixture(scope="module")
def trained():
    head = tiny_head()
    draw = distance_batches(table(walk().flatten(0, 1), NUM_EPISODES), head, recipe())
    objective, generator = DistanceObjective(head), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(head.parameters(), lr=5e-3)
    for _ in range(300):
        loss = objective(*draw(generator))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return head.requires_grad_(False)


def test_the_bins_hold_every_number_of_frames_once():
    head = tiny_head(max_frames=12)
    bins = head.bin_of(torch.arange(20)).tolist()
    assert bins == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 7, 7, *[8] * 7]
    centres = [0, 1, 2, 3, 4.5, 6.5, 9, 11.5, 24]
    assert head.bin_centres().tolist() == centres
    assert TemporalDistance(4, 4, 8, 1, max_frames=1).bin_centres().tolist() == [0, 1, 2]
    with pytest.raises(SfvgenError, match="max_frames must be at least 1, got 0"):
        TemporalDistance(max_frames=0)


def test_the_distance_is_the_expectation_over_the_bins():
    head = tiny_head()
    latents, goals = torch.randn(2, 5, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = [
        sum(p * c for p, c in zip(row, head.bin_centres().tolist(), strict=True))
        for row in head.logits(latents, goals).softmax(dim=1).tolist()
    ]
    assert head(latents, goals).tolist() == pytest.approx(expected, rel=1e-5)


def test_pairs_are_as_far_apart_as_they_are_told_to_be():
    head = tiny_head(max_frames=10)
    draw = distance_batches(numbered_table(), head, recipe(20_000))
    batch = draw(torch.Generator().manual_seed(0))
    rows, goals = (part.mean(dim=(1, 2, 3)).round().long() for part in (batch.latents, batch.goals))
    elsewhere = rows // 11 != goals // 11
    assert 0.23 < elsewhere.float().mean() < 0.27
    assert (batch.num_frames[elsewhere] == 11).all()
    assert (batch.num_frames[~elsewhere] == (goals - rows)[~elsewhere]).all()
    assert batch.num_frames.min() == 0
    # Every frame of the other episode can be a goal.
    for first in (0, 11):
        goals_there = goals[elsewhere & (rows // 11 == first // 11)]
        assert set(goals_there.tolist()) == set(range(22)) - set(range(first, first + 11))
    # From an episode's first frame, log-uniform: n has the share log((n + 2) / (n + 1)) / log(12).
    ahead = batch.num_frames[~elsewhere & (rows % 11 == 0)]
    for number in range(11):
        share = math.log((number + 2) / (number + 1)) / math.log(12)
        assert float((ahead == number).float().mean()) == pytest.approx(share, abs=0.04)


def test_pairs_come_from_the_generator_alone():
    draw = distance_batches(numbered_table(), tiny_head(max_frames=10), recipe(64, 0.2))
    first, again, other = (draw(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first.goals, other.goals)


def test_half_of_the_pairs_get_noise_up_to_its_largest_level():
    head = tiny_head(max_frames=10)
    exact, noisy = (
        distance_batches(numbered_table(), head, recipe(500, noise))(
            torch.Generator().manual_seed(0)
        )
        for noise in (0.0, 0.2)
    )
    level = (noisy.latents - exact.latents).std(dim=(1, 2, 3))
    assert 0.4 < float((level == 0).float().mean()) < 0.6
    assert 0.15 < float(level.max()) < 0.3
    assert torch.equal(level == 0, (noisy.goals == exact.goals).all(dim=(1, 2, 3)))


def test_the_loss_is_that_of_its_definition():
    head = tiny_head()
    latents, goals = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    num_frames = torch.tensor([0, 5, 13])
    probability = head.logits(latents, goals).softmax(dim=1).tolist()
    surprise = -sum(math.log(probability[row][bin]) for row, bin in enumerate((0, 4, 8))) / 3
    loss = DistanceObjective(head)(*DistanceBatch(latents, goals, num_frames))
    assert loss.item() == pytest.approx(surprise, rel=1e-5)


def test_it_learns_how_long_a_known_way_is(trained):
    frames = walk()
    for episode in range(NUM_EPISODES):
        goals = frames[episode, -1:].expand(NUM_CELLS, -1, -1, -1)[-MAX_FRAMES - 1 :]
        distances = trained(frames[episode, -MAX_FRAMES - 1 :], goals)
        truth = torch.arange(MAX_FRAMES, -1, -1.0)
        # Numbers that share a bin, as 8, 9 and 10 do, are told apart by chance only.
        assert (distances - truth).abs().max() < 2.5
        assert (distances - truth).abs().mean() < 1
        assert (distances[:-3] > distances[3:]).all()


def test_frames_of_another_episode_are_furthest(trained):
    frames = walk()
    elsewhere = trained(frames[0], frames[1])
    within = trained(frames[0, :MAX_FRAMES], frames[0, 1 : MAX_FRAMES + 1])
    assert elsewhere.min() > MAX_FRAMES
    assert within.max() < 2


def test_its_gradient_reaches_the_latents(trained):
    latents = walk()[0, :4].requires_grad_()
    distance = trained(latents, walk()[0, 4:8])
    assert (distance >= 0).all()
    (gradient,) = torch.autograd.grad(distance.sum(), latents)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_saved_and_loaded_it_answers_the_same(trained, tmp_path):
    trained.save_pretrained(tmp_path / "temporal_distance")
    heads = load_heads(tmp_path)
    assert heads.outcome_head is None
    again = heads.temporal_distance
    assert again is not None
    assert again.config.max_frames == MAX_FRAMES
    assert torch.equal(again.bin_centres(), trained.bin_centres())
    frames = walk()
    assert torch.allclose(again(frames[0], frames[1]), trained(frames[0], frames[1]), atol=1e-4)


def test_half_precision_leaves_the_bins_alone(tmp_path):
    head = tiny_head(max_frames=3001)
    centres = head.bin_centres()
    head.half().save_pretrained(tmp_path / "temporal_distance")
    again = load_heads(tmp_path).temporal_distance
    assert again is not None
    assert torch.equal(again.bin_centres(), centres)
    assert again(*torch.zeros(2, 1, 4, 4, 4)).dtype == torch.float32


def test_latents_of_another_model_are_refused():
    right, wrong = torch.zeros(2, 4, 4, 4), torch.zeros(2, 8, 4, 4)
    message = r"this temporal distance reads latents of the shape \(4, 4, 4\), got \(8, 4, 4\)"
    for pair in ((right, wrong), (wrong, right)):
        with pytest.raises(SfvgenError, match=message):
            tiny_head()(*pair)


@pytest.mark.parametrize(
    ("num_episodes", "max_frames", "message"),
    [(2, 11, "up to 11 frames .* the longest has 10; lower"), (1, 10, "collect more episodes")],
)
def test_data_without_such_pairs_is_refused(num_episodes, max_frames, message):
    with pytest.raises(SfvgenError, match=message):
        distance_batches(
            numbered_table(11 * num_episodes, num_episodes), tiny_head(max_frames), recipe()
        )
