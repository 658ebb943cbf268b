from dataclasses import replace

import numpy as np
import pytest
import torch

from sfvgen_planner.memory.context_learning import ContextBatches, ContextObjective
from sfvgen_planner.memory.contexts import CONTEXTS
from sfvgen_planner.memory.slow_fast import LoopBatches, episode_begins
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.recipe import Optimisation
from sfvgen_planner.world_model.trainer import begin_training, train
from tests.loop_tables import TABLE, recipe, rows_of


@pytest.fixture
def model():
    return tiny_world_model(denoiser="transformer")


def batches(model, name):
    settings = recipe(variant="none", context=name, memory={})
    loop = LoopBatches(TABLE, model, settings, settings.stages[0])
    return ContextBatches(loop, CONTEXTS[name])


@pytest.mark.parametrize("name", ["anchor_frame", "long_context"])
def test_a_recall_is_judged_behind_its_context(model, name):
    """The same window as behind a memory; only its past frames are others."""
    draw, begins = batches(model, name), episode_begins(TABLE)
    lengths = set()
    for seed in range(20):
        judged, slow = draw(torch.Generator().manual_seed(10_000 * seed))
        rows = rows_of(judged.latents, TABLE)
        assert rows_of(slow.latents, TABLE).shape == (12, 12)
        num_past = judged.num_past
        lengths.add(num_past)
        for window in rows:
            present, begin = window[num_past - 1], int(begins[window[num_past - 1]])
            assert TABLE.instructions[TABLE.instruction_ids[present]] in (
                "return the cube",
                "put it back",
            )
            if name == "anchor_frame":
                wanted = [begin, *range(present - 2, present + 1)]
            else:
                wanted = np.maximum(np.arange(present - num_past + 1, present + 1), begin)
                assert window[0] == begin
            assert window[:num_past].tolist() == list(wanted)
            assert (np.diff(window[num_past - 1 :]) >= 0).all()
            assert window[num_past - 1] < window[num_past]
    # After 1 to 4 whole chunks of 8 frames.
    assert lengths == ({4} if name == "anchor_frame" else {16, 24, 32, 40})


def test_the_loss_is_the_mean_over_both_kinds_of_windows(model):
    judged, slow = batches(model, "long_context")(torch.Generator().manual_seed(0))
    objective = ContextObjective(model)
    with torch.no_grad():
        errors = [objective.slow.errors(batch) for batch in (judged, slow)]
        total = sum(error.sum().item() for error, _ in errors)
        size = sum(counted.sum().item() for _, counted in errors)
        assert objective(judged, slow).item() == pytest.approx(total / size, rel=1e-5)
        alone = errors[0][0].sum() / errors[0][1].sum()
        assert objective(judged, None).item() == pytest.approx(alone.item(), rel=1e-5)


def test_a_model_learns_to_use_what_is_only_in_its_context(model, tmp_path):
    """The future is the episode's first frame over again: no recent frame shows it."""
    settings = recipe(variant="none", context="anchor_frame", memory={})
    table, begins = TABLE, episode_begins(TABLE)
    repeated = table.frames.clone()
    recalls = torch.tensor([id_ in (2, 3) for id_ in table.instruction_ids.tolist()])
    recalls[1:] |= recalls[:-1].clone()
    repeated[recalls] = table.frames[begins[recalls]]
    told = replace(table, frames=repeated)
    losses = {}
    for name in ("recent", "anchor_frame"):
        model = tiny_world_model(denoiser="transformer")
        loop = LoopBatches(told, model, settings, settings.stages[0])
        draw = ContextBatches(loop, CONTEXTS[name])
        objective = ContextObjective(model)
        how = Optimisation(steps=60, batch_size=24, learning_rate=3e-3, warmup_steps=0)
        train(objective, draw, how, tmp_path / name, begin_training(0, "no"), 0, name)
        with torch.no_grad():
            held = [
                draw(torch.Generator().manual_seed(10_000 * (1000 + seed)))[0] for seed in range(20)
            ]
            losses[name] = np.mean([objective(batch, None).item() for batch in held])
    assert losses["anchor_frame"] < losses["recent"]
