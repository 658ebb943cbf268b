import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from sfvgen_envs.tabletop_instructions import Instruction, instruction_texts
from sfvgen_envs.tabletop_scene import CUBE_COLOURS

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.memory import MEMORY_VARIANTS, trained_config
from sfvgen_planner.memory.adapter import Adapters
from sfvgen_planner.memory.loop import loop_metrics
from sfvgen_planner.memory.loop_recipe import LoopRecipe
from sfvgen_planner.memory.slow_fast import (
    LoopBatches,
    SlowFastObjective,
    episode_begins,
)
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.trainer import train
from tests.loop_tables import INSTRUCTIONS, TABLE, recipe, rows_of, told_table

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED_RECIPES = [RECIPES / f"tabletop_memory{part}.yaml" for part in ("_short", "_second", "")]


@pytest.fixture
def model():
    return tiny_world_model(denoiser="transformer")


def test_every_whole_chunk_before_the_judged_window_is_written(model):
    """As the memory is written in use: chunk i is frames 8 i + 1 .. 8 i + 8 behind 4 past ones."""
    draw = LoopBatches(TABLE, model, recipe(), recipe().stages[0])
    assert draw.horizons == [1, 2, 3, 4]
    begins = episode_begins(TABLE)
    for chunks in draw.horizons:
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            writes, judged = draw.draw(chunks, generator)
            written, shown = rows_of(writes.windows, TABLE), rows_of(judged.latents, TABLE)
            assert shown.shape == (12, 12)
            assert (shown[0::2] == shown[1::2]).all()
            for memory in range(6):
                window = shown[2 * memory]
                begin = int(begins[window[0]])
                for index in range(chunks):
                    wanted = begin + 8 * index + np.arange(-3, 9)
                    assert written[index, memory].tolist() == np.maximum(wanted, begin).tolist()
                present = window[3] - begin
                assert 8 * chunks <= present < 8 * chunks + 8


def test_judged_windows_follow_a_recall_that_has_just_come(model):
    settings = recipe(max_elapsed=2)
    draw = LoopBatches(TABLE, model, settings, settings.stages[0])
    tokens = model.tokenize(INSTRUCTIONS)
    for chunks, seed in itertools.product(draw.horizons, range(5)):
        _, judged = draw.draw(chunks, torch.Generator().manual_seed(seed))
        for tokens_of, rows in zip(judged.token_ids, rows_of(judged.latents, TABLE), strict=True):
            number = int(TABLE.instruction_ids[rows[3]])
            assert INSTRUCTIONS[number] in ("return the cube", "put it back")
            assert TABLE.elapsed[rows[3]] <= 2
            assert torch.equal(tokens_of, tokens[number])
        assert not judged.actions_given.any()
        assert judged.context_given.all()


def test_kinds_of_recall_come_as_often_as_asked(model):
    table = told_table([[(1, 10), (2, 13)]] * 9 + [[(1, 10), (3, 13)]])
    draw = LoopBatches(table, model, recipe(), recipe().stages[0])
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(100):
        _, judged = draw.draw(1, generator)
        found += table.instruction_ids[rows_of(judged.latents[::2], table)[:, 3]].tolist()
    assert np.mean(np.array(found) == 3) == pytest.approx(0.75, abs=0.06)


def test_the_moment_that_a_recall_comes_is_drawn_most(model):
    settings = recipe(max_elapsed=3)
    table = told_table([[(1, 16), (2, 20)]] * 10)
    draw = LoopBatches(table, model, settings, settings.stages[0])
    generator, elapsed = torch.Generator().manual_seed(0), []
    for _ in range(150):
        _, judged = draw.draw(2, generator)
        elapsed += table.elapsed[rows_of(judged.latents[::2], table)[:, 3]].tolist()
    shares = np.bincount(elapsed) / len(elapsed)
    assert shares == pytest.approx(np.array([12, 6, 4, 3]) / 25, abs=0.06)


def test_memories_are_written_near_pure_noise_without_any_condition(model, monkeypatch):
    settings = recipe()
    adapters = Adapters(model, settings.memory_config)
    calls = []
    denoise = model.denoise

    def spy(*arguments):
        calls.append(arguments)
        return denoise(*arguments)

    monkeypatch.setattr(model, "denoise", spy)
    objective = SlowFastObjective(model, adapters, settings.memory_config)
    draw = LoopBatches(TABLE, model, settings, settings.stages[0])
    writes, _ = draw.draw(2, torch.Generator().manual_seed(0))
    objective.write(writes)
    assert len(calls) == 2
    empty = model.encode_instructions([""])
    for _, timesteps, _, text_states, actions, actions_given, context_given in calls:
        assert timesteps.min() >= 950
        assert timesteps.max() <= 1000
        assert torch.allclose(text_states, empty.expand_as(text_states), atol=1e-6)
        assert not actions.any()
        assert not actions_given.any()
        assert not context_given.any()


def test_a_stage_may_average_fewer_noise_draws_than_the_memory_does_in_use(model):
    settings = recipe(stage={"num_noise_draws": 1})
    (stage,) = settings.stages
    draw = LoopBatches(TABLE, model, settings, stage)
    writes, _ = draw.draw(2, torch.Generator().manual_seed(0))
    assert writes.timesteps.shape == (2, 1, stage.num_memories)
    assert len(writes.noise[0, 0]) == stage.num_memories
    config = settings.training_config(stage)
    objective = SlowFastObjective(model, Adapters(model, config), config)
    assert objective.write(writes)
    assert settings.memory_config == replace(config, num_noise_draws=2)


def test_ordinary_samples_are_imagined_without_memory(model):
    """Their loss is that of slow learning alone, whatever the memories hold."""
    settings = recipe()
    adapters = Adapters(model, settings.memory_config)
    objective = SlowFastObjective(model, adapters, settings.memory_config)
    draw = LoopBatches(TABLE, model, settings, settings.stages[0])
    writes, judged, slow = draw(torch.Generator().manual_seed(0))
    assert len(slow.latents) == 12
    loss = objective(writes, judged, slow).item()
    errors, counted = objective.errors(objective.write(writes), len(writes.windows), judged)
    plain = tiny_world_model(denoiser="transformer")
    plain_errors, plain_counted = SlowFastObjective(
        plain, Adapters(plain, settings.memory_config), settings.memory_config
    ).slow.errors(slow)
    total = errors.sum() + plain_errors.sum()
    assert loss == pytest.approx((total / (counted.sum() + plain_counted.sum())).item(), rel=1e-5)


@pytest.mark.parametrize("second_order", [False, True])
def test_adapters_alone_can_be_trained(model, tmp_path, second_order):
    stage = {"adapters_only": True, "second_order": second_order}
    settings = recipe(stage={**stage, "optimisation": optimisation(batch_size=12)})
    settings = settings.model_copy(update={"memory": settings.memory | {"instruction_code": True}})
    run(model, settings, tmp_path, TABLE)
    fresh = tiny_world_model(denoiser="transformer").unet.state_dict()
    changed = set()
    for name, value in model.unet.state_dict().items():
        if ".lora_" in name:
            changed.add(name.split(".lora_")[1].split(".")[0])
        else:
            assert torch.equal(value, fresh[name.replace(".base_layer", "")])
    codes = {"position_code", "time_scale", "time_shift"}
    assert changed == {"A", "B", "instruction_scale", "instruction_shift", *codes}


def optimisation(**changes):
    return {"steps": 3, "batch_size": 24, "learning_rate": 1e-3, "warmup_steps": 0, **changes}


def run(model, settings, folder, table):
    stage = settings.stages[0]
    adapters = Adapters(model, settings.memory_config)
    objective = SlowFastObjective(model, adapters, settings.memory_config, stage.second_order)
    objective.requires_grad_(not stage.adapters_only)
    for parameter in adapters.parameters():
        parameter.requires_grad_(True)
    train(
        objective,
        LoopBatches(table, model, settings, stage),
        stage.optimisation,
        folder,
        Accelerator(cpu=True, mixed_precision="no"),
        0,
        "test",
    )
    return objective


def hidden_places(episodes, seed):
    """Something stands in one of four patches, is out of sight, and is to be returned there.

    Frames 0 to 8 show it, frames 9 to 12, which are the context, do not, and from frame 13 on it
    is back; nothing but memory tells where.
    """
    generator = torch.Generator().manual_seed(seed)
    table = told_table([[(1, 12), (2, 12)]] * episodes, seed)
    frames = torch.full((episodes, 25, 4, 4, 4), -0.3)
    for episode, place in enumerate(torch.randint(4, (episodes,), generator=generator).tolist()):
        row, column = 2 * (place // 2), 2 * (place % 2)
        frames[episode, :9, :, row : row + 2, column : column + 2] = 1.2
        frames[episode, 13:, :, row : row + 2, column : column + 2] = 1.2
    return type(table)(**{**vars(table), "frames": frames.flatten(0, 1)})


def test_the_loop_teaches_the_model_to_remember(model, tmp_path):
    settings = recipe(
        max_elapsed=0,
        memory={"rank": 8, "num_time_codes": 3},
        conditions={"actions": 0, "single_past_frame": 0},
        stage={
            "num_memories": 8,
            "optimisation": optimisation(
                steps=70, batch_size=32, learning_rate=3e-3, ema_decay=0.9, warmup_steps=10
            ),
        },
    )
    objective = run(model, settings, tmp_path, hidden_places(100, seed=0))
    stage = settings.stages[0].model_copy(update={"num_memories": 64})
    unseen = LoopBatches(hidden_places(100, seed=1), model, settings, stage)
    measured = loop_metrics(objective, unseen)(0)
    assert measured["held_out_with_memory"] < 0.5 * measured["held_out_without_memory"]
    assert measured["held_out_with_memory"] < 0.5 * measured["held_out_of_another_memory"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variant": "none"}, "no memory to train"),
        ({"variant": "nothing"}, "no memory variant"),
        ({"variant": "no_local_rule", "memory": {}}, "another variant"),
        ({"memory": {"size": 3}}, "size"),
        ({"memory": {"rank": -1}}, "rank"),
        ({"variant": "none", "memory": {}}, "no memory to train"),
        ({"variant": "none", "context": "anchor_frame"}, "leave them out"),
        (
            {"variant": "none", "context": "anchor_frame", "memory": {}, "change_weight": 1.0},
            "leave them out",
        ),
        ({"context": "anchor_frame"}, "set variant: none"),
        ({"context": "all"}, "must be one of recent, anchor_frame, long_context"),
        ({"recalls": {"(": 1.0}}, "regular expression"),
        ({"recalls": {}}, "recalls"),
        ({"stage": {"samples_per_memory": 4}}, "at least 48"),
        ({"stage": {"adapters_only": True}}, "adapters only"),
        ({"stage": {"max_chunks": 0}}, "max_chunks"),
        ({"stage": {"second_order": True, "stored_batches": 2}}, "frozen"),
        ({"stage": {"second_order_writes": 2, "stored_batches": 2}}, "frozen"),
        ({"stage": {"second_order_writes": 2, "second_order": True}}, "not both"),
    ],
)
def test_bad_recipes_are_told(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        recipe(**changes)


def test_a_store_with_nothing_to_recall_is_told(model):
    with pytest.raises(SfvgenError, match="no instruction matches recalls"):
        LoopBatches(told_table([[(1, 20)]]), model, recipe(), recipe().stages[0])


@pytest.mark.parametrize("path", SHIPPED_RECIPES, ids=lambda path: path.stem)
def test_the_shipped_recipes_recall_what_the_task_asks_back_and_nothing_else(path):
    """A move to the back of the table is no recall."""
    first, previous = LoopRecipe.load(path).recalls
    matched = {
        pattern: {text for text in instruction_texts() if re.search(pattern, text)}
        for pattern in (first, previous)
    }
    assert matched == {
        pattern: {Instruction(kind, colour, "", (0, 0)).text for colour in CUBE_COLOURS}
        for pattern, kind in ((first, "first"), (previous, "previous"))
    }


def test_single_values_of_a_recipe_can_be_changed(tmp_path):
    several = recipe().model_dump(mode="json")
    (stage,) = several["stages"]
    several["stages"] = [{**stage, "max_chunks": number} for number in (2, 3, 4)]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(several))
    changed = LoopRecipe.load(path, ["stages.1.max_chunks=7", "memory.rank=8"])
    assert [stage.max_chunks for stage in changed.stages] == [2, 7, 4]
    assert changed.memory_config.rank == 8
    for change in ("stages.9.max_chunks=7", "stages.first.max_chunks=7", "stages.0=1"):
        with pytest.raises(SfvgenError, match=re.escape(change)):
            LoopRecipe.load(path, [change])


def test_the_shipped_recipes_make_the_shipped_memory():
    ours = replace(MEMORY_VARIANTS["ours"], learning_rate=0.005, instruction_code=True)
    table = replace(ours, rank=128, num_time_codes=16, num_time_slots=16)
    assert [LoopRecipe.load(path).memory_config for path in SHIPPED_RECIPES] == [table] * 3
    assert trained_config("tabletop_memory") == table
