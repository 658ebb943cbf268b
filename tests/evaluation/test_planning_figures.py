"""The planning evaluation on sizes of nothing, and its cost against the simulator."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from sfvgen_policies import make_policy

from sfvgen_planner.cli.main import main
from sfvgen_planner.data.environment import make_env
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation import planning as evaluation
from sfvgen_planner.evaluation.measure import HELD_OUT_SEED, measure
from sfvgen_planner.evaluation.planning import FIGURES, METHODS, PlanningConfig
from sfvgen_planner.evaluation.rollout import play
from sfvgen_planner.evaluation.tabletop import ENV_ID, way_to_go_m
from sfvgen_planner.memory import MEMORY_VARIANTS, EpisodicMemory
from sfvgen_planner.world_model import tiny_world_model
from tests.processes import quick_workers


@pytest.fixture
def config(tiny_checkpoint):
    config = PlanningConfig.of(str(tiny_checkpoint), "cpu", num_episodes=2)
    return replace(config, levels=(1,), num_candidates=2, num_iterations=1)


@pytest.fixture
def short(monkeypatch):
    """Instructions of 9 steps, one more than a chunk."""
    shorten(monkeypatch, 9)


def shorten(monkeypatch, num_steps):
    monkeypatch.setattr(
        evaluation,
        "make_env",
        lambda env_id, kwargs: make_env(env_id, {**kwargs, "steps_per_instruction": num_steps}),
    )


@pytest.fixture
def looped_checkpoint(tiny_checkpoint, tmp_path):
    """As the slow-fast loop leaves one, with a memory of its own that learns in no time."""
    folder = tmp_path / "looped"
    shutil.copytree(tiny_checkpoint, folder)
    config = replace(MEMORY_VARIANTS["ours"], rank=1, num_steps=1, num_noise_draws=1)
    EpisodicMemory(tiny_world_model(), config).save_pretrained(folder / "memory")
    return folder, config


def rows_of(path):
    return json.loads(path.read_text())["figures"]


def test_the_values_are_those_of_the_environment(tmp_path, config):
    out = tmp_path / "planning.json"
    config = replace(config, methods=("expert", "random"), levels=(2,), num_planned_episodes=3)
    measure(out, config, FIGURES, ["success_rate"])
    found = {(row["name"], row["method"]): row for row in rows_of(out)}
    assert found.keys() == {
        (name, method)
        for name in ("success_rate", "distance_m", "waypoint_distance_m")
        for method in ("expert", "random")
    }
    env = make_env(ENV_ID, {"level": 2, "recall": "first"})
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + 3)
    for method in ("expert", "random"):
        results = [
            e.info["instruction_results"] for e in play(env, make_policy(method, env), seeds)
        ]
        successes = [all(one["success"] for one in result) for result in results]
        distances = [[one["distance_m"] for one in result] for result in results]
        assert found["success_rate", method]["value"] == np.mean(successes)
        assert found["distance_m", method]["value"] == pytest.approx(
            np.mean([each[-1] for each in distances])
        )
        assert found["waypoint_distance_m", method]["value"] == pytest.approx(np.mean(distances))
        row = found["success_rate", method]
        assert (row["env"], row["level"], row["memory"]) == (ENV_ID, 2, False)
        assert row["seeds"] == list(seeds)
        assert "model" not in row
    env.close()
    assert found["success_rate", "expert"]["value"] > found["success_rate", "random"]["value"]


def test_workers_find_what_one_process_finds(tmp_path, config, monkeypatch):
    quick_workers(monkeypatch)
    values = []
    for num_workers in (1, 2):
        out = tmp_path / f"{num_workers}.json"
        spread = replace(config, methods=("random",), num_planned_episodes=3)
        measure(out, replace(spread, num_workers=num_workers), FIGURES)
        values.append([(row["name"], row["value"], row["seeds"]) for row in rows_of(out)])
    assert values[0] == values[1]
    assert len(values[0]) == 3


@pytest.mark.parametrize("setting", ["num_workers", "num_envs"])
def test_no_workers_and_no_environments_are_refused(tmp_path, config, setting):
    config = replace(config, methods=("video_plan",), **{setting: 0})
    with pytest.raises(SfvgenError, match=f"{setting} must be at least 1, got 0"):
        measure(tmp_path / "a.json", config, FIGURES)


@pytest.mark.parametrize("method", ["video_plan", "mpc_cem"])
def test_episodes_side_by_side_are_those_played_one_by_one(
    config, looped_checkpoint, method, monkeypatch
):
    # Two chunks, and a plan that the memory has a part in.
    shorten(monkeypatch, 16)
    writes = []
    write = EpisodicMemory.write_batch

    def spy(self, *args, **kwargs):
        writes.append(len(args[0]))
        return write(self, *args, **kwargs)

    monkeypatch.setattr(EpisodicMemory, "write_batch", spy)
    config = replace(config, model=str(looped_checkpoint[0]), num_planned_episodes=2)
    alone = evaluation._values(method, 1, True, config)
    together = evaluation._values(method, 1, True, replace(config, num_envs=2))
    for name in ("success_rate", "distance_m", "waypoint_distance_m"):
        assert alone[name].shape == (2,)
        assert together[name] == pytest.approx(alone[name], abs=1e-4)
    # The first instruction fails, and with it the episode ends.
    assert writes == [1] * 4 + [2] * 2


def test_plans_made_together_are_told_apart_from_those_made_alone(tmp_path, config, short):
    out = tmp_path / "planning.json"
    config = replace(config, methods=("video_plan", "random"), num_envs=2)
    measure(out, config, FIGURES)
    rows = [row for row in rows_of(out) if row["method"] == "video_plan"]
    assert {row.get("num_envs") for row in rows if row["name"] == "plans_per_second"} == {2}
    assert not any("num_envs" in row for row in rows if row["name"] != "plans_per_second")
    assert {row["episodes"] for row in rows_of(out)} == {2}


def test_planners_are_measured_with_and_without_their_memory(
    tmp_path, config, short, looped_checkpoint, monkeypatch
):
    folder, memory_config = looped_checkpoint
    writes = []
    write = EpisodicMemory.write_batch

    def spy(self, *args, **kwargs):
        writes.append(self.config)
        return write(self, *args, **kwargs)

    monkeypatch.setattr(EpisodicMemory, "write_batch", spy)
    out = tmp_path / "planning.json"
    config = replace(config, model=str(folder), methods=("video_plan",), num_planned_episodes=1)
    measure(out, config, FIGURES)
    rows = {(row["name"], row["memory"]): row for row in rows_of(out)}
    names = set(FIGURES)
    differences = {f"{name}_difference" for name in FIGURES if name != "plans_per_second"}
    assert rows.keys() == {(n, m) for n in names for m in (False, True)} | {
        (n, True) for n in differences
    }
    for name in differences:
        plain = name.removesuffix("_difference")
        expected = rows[plain, True]["value"] - rows[plain, False]["value"]
        assert rows[name, True]["value"] == pytest.approx(expected)
    assert rows["plans_per_second", False]["value"] > 0
    assert rows["plans_per_second", False]["num_candidates"] == 2
    # It is the checkpoint's own, and is written once for every 8 of 9 to 18 steps.
    assert writes in ([memory_config], [memory_config] * 2)


@pytest.mark.parametrize("method", ["mpc_cem", "mpc_mppi", "mpc_simulator"])
def test_searches_have_the_size_that_is_asked_for(config, short, method, monkeypatch):
    plans = []
    measured = evaluation.plans_per_second
    monkeypatch.setattr(
        evaluation,
        "plans_per_second",
        lambda policy: plans.extend(policy.plans) or measured(policy),
    )
    in_simulator = method == "mpc_simulator"
    config = replace(
        config,
        num_planned_episodes=1,
        num_iterations=2,
        num_executed_steps=4,
        num_simulator_candidates=5,
        num_simulator_iterations=3,
    )
    values = evaluation._values(method, 1, False, config)
    assert values["success_rate"].shape == (1,)
    settings = METHODS[method].settings(config)
    sizes = (settings["num_candidates"], settings["num_iterations"])
    assert sizes == ((5, 3) if in_simulator else (2, 2))
    counts = {record.plan.diagnostics["num_evaluations"] for record in plans}
    assert counts == {math.prod(sizes)}
    # The first instruction has 9 steps; then it is planned anew.
    steps = [record.step for record in plans]
    assert steps[: steps.index(9)] == ([0, 2, 4, 6, 8] if in_simulator else [0, 4, 8])


def test_the_way_to_go_shrinks_to_nothing_while_the_expert_works():
    env = make_env(ENV_ID, {"level": 1, "recall": "first"})
    expert = make_policy("expert", env)
    observation, info = env.reset(seed=HELD_OUT_SEED)
    text, costs = info["instruction"], []
    while info["instruction"] == text:
        observation, reward, _, _, info = env.step(expert.act(observation, text))
        costs.append(way_to_go_m(env.unwrapped, reward, info))
    env.close()
    assert costs[-1] == 0.0
    placed = [cost for cost in costs if cost < 0.1]
    assert costs[-len(placed) :] == placed  # once it is placed, it stays so
    # From start to the end of each third it becomes less.
    thirds = [np.mean(part) for part in np.array_split(costs, 3)]
    assert thirds[0] > thirds[1] > thirds[2]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"methods": ("luck",)}, "no method 'luck'; choose from video_plan"),
        ({"levels": (5,)}, "no level 5; choose from 1, 2, 3, 4"),
        ({"num_candidates": 1}, "num_candidates must be at least 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(bad, told):
    with pytest.raises(SfvgenError, match=told):
        PlanningConfig(**bad)


def test_the_command_takes_methods_and_levels(tmp_path, tiny_checkpoint, capsys):
    out = tmp_path / "planning.json"
    command = ["eval", "planning", "--model", str(tiny_checkpoint), "--device", "cpu"]
    what = ["--methods", "expert", "--levels", "1", "3", "--episodes", "1", "--out", str(out)]
    assert main([*command, *what]) == 0
    rows = [row for row in rows_of(out) if row["name"] == "success_rate"]
    assert [(row["method"], row["level"]) for row in rows] == [("expert", 1), ("expert", 3)]
    assert "success_rate" in capsys.readouterr().out
    assert main([*command, "--methods", "luck"]) == 2
    assert ", ".join(METHODS) in capsys.readouterr().err
