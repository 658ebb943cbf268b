from dataclasses import replace

import numpy as np
import pytest
import torch

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.held_out import NUM_BATCHES, held_out_metrics
from sfvgen_planner.world_model.recipe import Conditions, Optimisation, WorldModelRecipe
from sfvgen_planner.world_model.slow_learning import slow_batches


def table(lengths=(30, 20), instructions=("", "return the red cube", "return the blue cube")):
    """Frames painted with their own row number; the instruction changes at every tenth row."""
    total = sum(lengths)
    rows = torch.arange(total)
    return FrameTable(
        frames=rows.to(torch.uint8)[:, None, None, None].expand(total, 64, 64, 3),
        actions=torch.zeros(total, 4),
        rewards=torch.zeros(total),
        successes=torch.full((total,), -1),
        instruction_ids=(rows // 10) % len(instructions),
        remaining=torch.cat([torch.arange(length - 1, -1, -1) for length in lengths]),
        elapsed=rows % 10,
        instructions=list(instructions),
    )


@pytest.mark.parametrize(("episodes", "held_out"), [(2, 1), (49, 1), (100, 2), (199, 3)])
def test_one_episode_in_fifty_is_held_out(episodes, held_out):
    lengths = [3 + index % 4 for index in range(episodes)]
    whole = table(lengths)
    training, rest = whole.split(50)
    assert (rest.remaining == 0).sum() == held_out
    owner = torch.repeat_interleave(torch.arange(episodes), torch.tensor(lengths))
    kept = owner % 50 != 49 if episodes >= 50 else owner != episodes - 1
    for field in ("frames", "actions", "successes", "instruction_ids", "remaining", "elapsed"):
        assert torch.equal(getattr(training, field), getattr(whole, field)[kept])
        assert torch.equal(getattr(rest, field), getattr(whole, field)[~kept])


def test_the_only_episode_is_not_held_out():
    with pytest.raises(SfvgenError, match="collect more"):
        table([30]).split(50)


def recipe(**conditions):
    mixes = {"language": 0, "actions": 1, "language_and_actions": 0, "none": 0, "whole_sequence": 0}
    return WorldModelRecipe(
        conditions=Conditions(**{**mixes, **conditions}),
        optimisation=Optimisation(steps=1, batch_size=4, learning_rate=1e-3),
    )


def test_the_loss_of_a_denoiser_that_says_zero_is_the_mean_square_of_the_target(model, monkeypatch):
    monkeypatch.setattr(model, "denoise", lambda window, *args: torch.zeros_like(window))
    draw = slow_batches(table().encoded(model), model, recipe())
    wanted = []
    for seed in range(NUM_BATCHES):
        batch = draw(torch.Generator().manual_seed(seed))
        target = batch.noise - batch.latents
        wanted.append(target[:, :, batch.num_past :].square().mean().item())
    loss = held_out_metrics(table(), model, recipe())(1)["held_out_loss"]
    assert loss == pytest.approx(np.mean(wanted), rel=1e-5)


def test_images_show_real_frames_above_imagined_ones(model):
    metrics = held_out_metrics(table(), model, recipe())(1)
    for name in ("imagined_with_actions", "imagined_from_language"):
        real, imagined = metrics[name].reshape(2, 64, 12, 64, 3).swapaxes(1, 2)
        rows = real[:, 0, 0, 0].astype(int)
        assert (real == rows[:, None, None, None]).all()
        assert (imagined[:4] == real[:4]).all()
        assert not (imagined[4:] == real[4:]).all()
        if name == "imagined_with_actions":
            assert (np.diff(rows) == 1).all()
        else:
            # The episodes end at rows 29 and 49, the instructions change at every tenth row.
            end = min(rows[3] // 10 * 10 + 10, 29 if rows[3] < 30 else 49)
            assert list(rows) == [min(rows[0] + k, end) for k in range(12)]


def test_measuring_again_gives_the_same_and_leaves_the_random_numbers(model):
    evaluate = held_out_metrics(table(), model, recipe(language=0.5))
    before = torch.get_rng_state()
    first, second = evaluate(1), evaluate(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_without_instructions_there_is_no_language_video(model):
    untold = replace(table(), instruction_ids=torch.zeros(50, dtype=torch.long))
    metrics = held_out_metrics(untold, model, recipe())(1)
    assert metrics.keys() == {"held_out_loss", "imagined_with_actions"}


def test_a_compiled_denoiser_is_measured_without_compiling_it_again(model, monkeypatch):
    def no_compiler(graph, inputs):
        raise AssertionError("compiled")

    wanted = held_out_metrics(table(), model, recipe())(1)["held_out_loss"]
    monkeypatch.setattr(model.unet, "_compiled_call_impl", None)
    model.unet.compile(backend=no_compiler)
    assert held_out_metrics(table(), model, recipe())(1)["held_out_loss"] == wanted
