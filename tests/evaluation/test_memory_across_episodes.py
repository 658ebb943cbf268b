"""Memories of earlier visits: what they are of, what the bank finds, what goes on from them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.evaluation import memory_across_episodes as evaluation
from sfvgen_planner.evaluation.earlier_visits import (
    VISITS,
    earlier_visits,
    first_frames,
    recalled,
    recognised,
    record_visits,
)
from sfvgen_planner.evaluation.measure import HELD_OUT_SEED, measure
from sfvgen_planner.evaluation.memory import FIGURES, MemoryConfig
from sfvgen_planner.evaluation.memory_variants import VARIANTS, attached, learn
from sfvgen_planner.evaluation.return_trials import draw_trials
from sfvgen_planner.evaluation.tabletop import ENV_ID
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.memory import MemoryBank
from sfvgen_planner.memory.adapter_files import COUNTER
from sfvgen_planner.world_model import tiny_world_model

OURS = VARIANTS["ours"]
FIGURE = "across_episodes_error_px"
# The latents of an untrained autoencoder hardly differ: about 0.025 from scene to scene.
SAME_SCENE = 1e-3


@pytest.fixture(scope="module")
def trials():
    return draw_trials("first", 1, 3, HELD_OUT_SEED, 16)


def replayed(trial, actions):
    """The simulator's pictures, the gripper's places and each cube's, step by step."""
    # So long that the task, which asks something else, ends no visit.
    env = make_env(ENV_ID, {**trial.env_kwargs, "steps_per_instruction": 1000})
    tabletop = env.unwrapped
    frames = [env.reset(seed=trial.seed)[0]["image"].copy()]
    grippers = [tabletop.gripper_position.copy()]
    places = {colour: [tabletop.cube_position(colour)] for colour in tabletop.plan.cubes}
    for action in actions:
        frames.append(env.step(action)[0]["image"].copy())
        grippers.append(tabletop.gripper_position.copy())
        for colour, known in places.items():
            known.append(tabletop.cube_position(colour))
    env.close()
    return np.stack(frames), np.stack(grippers), {c: np.stack(known) for c, known in places.items()}


def left_at(places):
    """The step at which a cube has gone 5 cm from its first place; infinity for never."""
    (away,) = np.nonzero(np.linalg.norm(places - places[0], axis=-1) > 0.05)
    return away[0] if len(away) else np.inf


@pytest.mark.parametrize("visit", VISITS)
def test_an_earlier_visit_begins_alike_and_goes_on_otherwise(trials, visit):
    for trial, past in zip(trials[:2], earlier_visits(visit, trials[:2]), strict=True):
        assert len(past.told) == len(past.actions)
        frames, grippers, places = replayed(trial, past.actions)
        assert np.array_equal(past.past, frames)
        assert np.array_equal(past.past[0], trial.past[0])
        _, trial_grippers, _ = replayed(trial, trial.actions)
        both = min(len(grippers), len(trial_grippers))
        assert np.linalg.norm(grippers[:both] - trial_grippers[:both], axis=-1).max() > 0.03
        asked = left_at(places.pop(trial.cube))
        others = [left_at(other) for other in places.values()]
        if visit == "same_moves":
            assert len(past.actions) == len(trial.actions)
            assert past.told[0] == trial.told[0]
        else:
            assert all(told.endswith("pad") for told in past.told)
            assert max(others) < np.inf
        if visit == "asked_cube_first":
            assert asked < min(others)
        elif visit == "asked_cube_last":
            assert max(others) < asked < np.inf
        elif visit == "asked_cube_still":
            assert asked == np.inf


def test_the_gripper_is_elsewhere_before_any_cube_is(trials):
    for trial in trials:
        _, grippers, places = replayed(trial, trial.actions[: evaluation.NUM_STEPS_ELSEWHERE])
        assert np.linalg.norm(grippers[-1] - grippers[0]) > 0.03
        for cube in places.values():
            assert np.abs(cube[-1] - cube[0]).max() < 1e-3


@pytest.fixture
def attached_memory(looped_checkpoint):
    """Two visits at a time: the third is alone in its batch."""
    model = tiny_world_model(env_id=ENV_ID)
    with attached(OURS, model, str(looped_checkpoint), 2) as memory:
        yield memory


def alike(state, other):
    assert state.keys() == other.keys()
    return all(
        torch.allclose(state[name].float(), other[name].float(), atol=1e-4) for name in state
    )


def test_the_bank_finds_the_right_visit_and_no_other(trials, attached_memory, tmp_path):
    memory, visits = attached_memory, earlier_visits("same_moves", trials)
    with MemoryBank(tmp_path / "bank", memory.world_model, same_scene_distance=SAME_SCENE) as bank:
        record_visits(bank, memory, visits, "")
        assert len(bank) == len(trials)
        for row, (trial, visit, episode) in enumerate(zip(trials, visits, bank, strict=True)):
            assert np.array_equal(episode.first_frame(), visit.past[0])
            chunks = [episode.chunk(index) for index in range(len(episode))]
            assert len(chunks) == len(visit.actions) // 8 == 1
            assert np.array_equal(chunks[0].frames, visit.past[1:9])
            assert np.array_equal(chunks[0].actions, visit.actions[:8])
            assert recognised(bank, trial.past[0]).episode.number == row
            assert recognised(bank, trial.past[-1]) is None
            assert alike(recalled(bank, memory, trial.past[0]), learn(memory, [visit], "")[0])
        (new,) = first_frames(trials[0].env_kwargs, [trials[-1].seed + 1])
        assert recognised(bank, new) is None
        state = recalled(bank, memory, new)
        memory.reset()
        assert alike(state, memory.state())


def test_a_visit_goes_on_from_the_earlier_one_as_in_the_wrapper(
    trials, looped_checkpoint, attached_memory, tmp_path
):
    memory, trial = attached_memory, trials[1]
    with MemoryBank(tmp_path / "bank", memory.world_model, same_scene_distance=SAME_SCENE) as bank:
        record_visits(bank, memory, earlier_visits("asked_cube_still", trials), "")
        starts = [recalled(bank, memory, trial.past[0]) for trial in trials]
    states = learn(memory, trials, "", starts)
    fresh = learn(memory, trials, "")
    memory.detach()
    writes = [[int(state[COUNTER]) for state in group] for group in (fresh, starts, states)]
    assert writes == [[1] * 3, [3] * 3, [4] * 3]
    model = tiny_world_model(env_id=ENV_ID)
    with (
        attached(OURS, model, str(looped_checkpoint)) as online,
        MemoryBank(tmp_path / "bank", model, same_scene_distance=SAME_SCENE) as bank,
    ):
        env = ImaginationWrapper(make_env(ENV_ID, trial.env_kwargs), model, online, bank=bank)
        env.reset(seed=trial.seed)
        assert env.recalled.episode.number == 1
        for action in trial.actions:
            env.step(action)
        env.close()
        assert alike(states[1], online.state())
    assert not alike(states[1], {**fresh[1], COUNTER: states[1][COUNTER]})
    assert not alike(states[1], states[0])


def run(out, checkpoint, figures, **settings):
    config = MemoryConfig.of(str(checkpoint), "cpu", num_episodes=3)
    small = {"recalls": ("first",), "horizons": (1,), "num_inference_steps": 1}
    measure(out, replace(config, **{**small, "guidance_scale": 1.0, **settings}), FIGURES, figures)
    return json.loads(out.read_text())["figures"] if out.exists() else []


def test_every_memory_is_imagined_on_the_same_episodes(
    tmp_path, looped_checkpoint, trials, monkeypatch
):
    monkeypatch.setattr(evaluation, "VISITS", ("same_moves", "asked_cube_still"))
    held, real = [], evaluation.imagine_returns

    def spy(model, some, variant, memory, states, **settings):
        writes = None if states is None else [int(state[COUNTER]) for state in states]
        held.append((settings["description"].split(",")[0], writes))
        return real(model, some, variant, memory, states, **settings)

    monkeypatch.setattr(evaluation, "imagine_returns", spy)
    rows = run(tmp_path / "a.json", looped_checkpoint, ["across_episodes_hit_rate_2px"])
    # A trial has one chunk, and a visit that moves two cubes about 25 steps.
    assert held == [
        ("none", None),
        ("ours", [1, 1, 1]),
        ("earlier_visit", [1, 1, 1]),
        ("earlier_visit_and_own", [2, 2, 2]),
        ("earlier_visit", [3, 3, 3]),
        ("earlier_visit_and_own", [4, 4, 4]),
    ]
    assert {tuple(row["seeds"]) for row in rows if row["name"] != "bank_false_scene_rate"} == {
        tuple(trial.seed for trial in trials)
    }
    errors = {
        (row["variant"], row.get("visit")): row["value"] for row in rows if row["name"] == FIGURE
    }
    assert len(errors) == 6
    paired = [row for row in rows if row["name"] == f"{FIGURE}_difference"]
    assert len(paired) == 8
    for row in paired:
        above = errors[row["variant"], row["visit"]] - errors[row["reference"], None]
        assert row["value"] == pytest.approx(above)
    # An earlier visit has the very first frame; all scenes look alike to a model without skill.
    found = {row["asked_at"]: row["value"] for row in rows if row["name"] == "bank_scene_hit_rate"}
    assert found["reset"] == 1
    assert set(found) == {"reset", "gripper_elsewhere", "request"}
    (new,) = {r["value"] for r in rows if r["name"] == "bank_false_scene_rate"}
    assert new == 1


def test_it_is_the_open_loop_with_other_memories(tmp_path, looped_checkpoint, monkeypatch):
    monkeypatch.setattr(evaluation, "VISITS", ())
    names, variants = [FIGURE, "open_loop_error_px"], ("none", "ours")
    rows = run(tmp_path / "a.json", looped_checkpoint, names, variants=variants)
    for variant in variants:
        values = [
            row["value"] for row in rows if row["name"] in names and row["variant"] == variant
        ]
        assert len(values) == 2
        assert values[0] == values[1]


@pytest.mark.parametrize("chosen", [{"recalls": ("previous",)}, {"variants": ("none", "paper")}])
def test_without_our_memory_of_first_places_it_is_left_out(
    tmp_path, looped_checkpoint, caplog, chosen
):
    assert run(tmp_path / "a.json", looped_checkpoint, [FIGURE], **chosen) == []
    assert f"{FIGURE}, bank_scene_hit_rate, bank_false_scene_rate are left out" in caplog.text
