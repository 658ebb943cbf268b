import itertools
import signal

import pytest
import torch
from accelerate import Accelerator

from sfvgen_planner.memory.adapter import Adapters
from sfvgen_planner.memory.slow_fast import LoopBatches, SlowFastObjective, episode_begins
from sfvgen_planner.memory.stored_batches import StoredBatches
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.recipe import Optimisation
from sfvgen_planner.world_model.trainer import train
from tests.loop_tables import TABLE, recipe, rows_of


def stored_loop(**changes):
    """The objective and the draw of a loop with two stored batches in rounds of four steps."""
    model = tiny_world_model(denoiser="transformer")
    settings = recipe(stage={"stored_batches": 2, "steps_per_round": 4, **changes})
    config, [stage] = settings.memory_config, settings.stages
    objective = SlowFastObjective(model, Adapters(model, config), config)
    return objective, StoredBatches(LoopBatches(TABLE, model, settings, stage), objective, stage)


def test_stored_memories_stay_for_a_round():
    """The paper's loop: new memories only as a round begins, new noise in each step."""
    objective, draw = stored_loop()
    rounds = [[draw(torch.Generator().manual_seed(n + m)) for n in range(4)] for m in (0, 4)]
    held = [{id(batch.writes.fast) for batch in batches} for batches in rounds]
    assert len(held[0]) <= 2
    assert not held[0] & held[1]
    noises = [batch.judged.noise for batches in rounds for batch in batches]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(noises, 2))
    begins = episode_begins(TABLE)
    for batch in rounds[0]:
        last = rows_of(batch.judged.latents, TABLE)[:, 3]
        before = (torch.from_numpy(last) - begins[last]) // 8
        assert (before == batch.writes.num_chunks).all()
        assert not any(value.requires_grad for value in batch.writes.fast.values())
        objective(*batch)


def run(folder, losses, stop_after=None):
    """Ten steps, which begin or go on, or fewer; the weights that they end in."""
    optimisation = {"steps": 10, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 0}
    objective, draw = stored_loop(num_memories=2, max_chunks=2, optimisation=optimisation)

    def note(module, batch, loss):
        losses.append(loss.item())
        if len(losses) == stop_after:
            signal.raise_signal(signal.SIGINT)

    objective.register_forward_hook(note)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    train(objective, draw, Optimisation(**optimisation), folder, accelerator, 0, "test")
    return objective.state_dict()


@pytest.mark.parametrize("stop_after", [4, 6])
def test_a_loop_stopped_at_the_end_or_amid_a_round_equals_one_that_was_not(tmp_path, stop_after):
    losses, parts = [], []
    whole = run(tmp_path / "whole", losses)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", parts, stop_after)
    assert len(parts) == stop_after
    resumed = run(tmp_path / "parts", parts)
    assert parts == losses
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_the_state_of_other_stored_batches_is_refused():
    _, two = stored_loop()
    two(torch.Generator())
    _, three = stored_loop(stored_batches=3)
    with pytest.raises(KeyError, match="num_chunks"):
        three.load_state(two.state())
