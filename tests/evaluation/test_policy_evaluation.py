"""Policy evaluation in a world whose model is perfect, and on sizes of nothing."""

import json
import shutil
import sys
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

from sfvgen_planner.cli.main import main
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation import policy_evaluation as evaluation
from sfvgen_planner.evaluation import policy_plot
from sfvgen_planner.evaluation.policy_evaluation import (
    FIGURES,
    PolicyEvaluationConfig,
    measure_policies,
)
from sfvgen_planner.evaluation.policy_ladder import LADDER, PLANNERS, planner_rung
from sfvgen_planner.evaluation.policy_plot import plot_success_rates
from sfvgen_planner.planning import VideoPlanner
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from tests.point_mass import (
    SPEED,
    PointMassEnv,
    PointMassInverseDynamics,
    PointMassWorldModel,
    draw,
    locate,
)
from tests.reach import LINE, NUM_STEPS, SPEEDS, LineHead, ReachEnv, mover


@pytest.fixture
def reach(monkeypatch):
    monkeypatch.setattr(evaluation, "make_env", lambda *_: ReachEnv())
    monkeypatch.setattr(evaluation, "required_outcome_head", lambda _: LineHead())
    monkeypatch.setattr(PointMassWorldModel, "to", lambda self, _: self, raising=False)
    monkeypatch.setattr(evaluation, "load_world_model", lambda _: PointMassWorldModel())
    return PolicyEvaluationConfig(device="cpu", num_policy_episodes=12, batch_size=5)


def by_name(figures, **fields):
    chosen = [f for f in figures if fields.items() <= f.fields.items()]
    return {f.name: f for f in chosen}


def test_a_perfect_model_agrees_with_the_simulator(reach):
    figures = list(measure_policies(reach, [mover(speed) for speed in SPEEDS]))
    rates = [f for f in figures if f.name == "policy_success_rate"]
    assert len({f.fields["policy"] for f in rates}) == len(SPEEDS)
    first = [PointMassEnv().reset(seed=seed)[0][0] for seed in reach.seeds(12)]
    for speed in SPEEDS:
        told = [f for f in rates if f.fields["policy"] == mover(speed).name]
        end = np.array(first) + NUM_STEPS * SPEED * speed
        truth = (locate(draw(np.stack([end, np.full(12, 0.5)], axis=1)))[:, 0] >= LINE).mean()
        assert [f.value for f in told] == [truth] * 3
        assert [f.fields.get("criterion") for f in told] == [None, "any_frame", "last_frame"]
    assert 0 < np.mean([f.value for f in rates]) < 1
    for criterion in ("any_frame", "last_frame"):
        found = by_name(figures, criterion=criterion, policies=len(SPEEDS))
        assert found["episode_agreement"].value == 1
        assert found["pearson_r"].value == pytest.approx(1)
        assert found["pearson_r"].ci95 == pytest.approx((1, 1))
        assert found["spearman_rho"].value == pytest.approx(1)
        assert found["mean_rank_violation"].value == 0


def test_success_in_passing_counts_for_any_frame_only(reach):
    ladder = [mover(0), mover(1, turn=8), mover(1)]
    figures = list(measure_policies(reach, ladder))
    passing = by_name(figures, policy=ladder[1].name, where="imagination")
    assert passing["policy_success_rate"].fields["criterion"] == "last_frame"
    assert passing["policy_success_rate"].value == 0
    found = by_name(figures, criterion="any_frame")
    # From every start it crosses the line and comes back: one verdict of three is wrong.
    assert found["episode_agreement"].value == pytest.approx(2 / 3)
    # Rates (0, 0, 1) and (0, 1, 1).
    assert found["pearson_r"].value == pytest.approx(0.5)
    assert found["mean_rank_violation"].value == pytest.approx(1 / 3)


def test_policies_on_images_also_act_in_the_imagined_world(reach):
    ladder = [mover(0), mover(1, acts_on_images=True)]
    figures = list(measure_policies(reach, ladder))
    closed = [f for f in figures if f.fields.get("mode") == "closed_loop"]
    assert [f.fields["policy"] for f in closed] == [ladder[1].name] * 2
    # In 32 steps it would go there and back; the world ends on the second frame of success.
    assert [f.value for f in closed] == [1, 1]
    assert by_name(figures, criterion="last_frame")["pearson_r"].fields["mode"] == "replay"


def test_closed_loops_in_a_perfect_model_agree_with_the_simulator(reach, monkeypatch):
    monkeypatch.setattr(evaluation, "DEFAULT_HORIZON", NUM_STEPS)
    ladder = [mover(0), *(mover(speed, acts_on_images=True) for speed in SPEEDS[1:])]
    figures = list(measure_policies(reach, ladder))
    for criterion in ("any_frame", "last_frame"):
        found = by_name(figures, mode="closed_loop", criterion=criterion, policies=len(SPEEDS) - 1)
        assert found["episode_agreement"].value == 1
        assert found["pearson_r"].value == pytest.approx(1)
        assert found["spearman_rho"].value == pytest.approx(1)
        assert found["mean_rank_violation"].value == 0


def test_closed_loops_that_are_all_alike_have_no_correlation(reach, monkeypatch):
    monkeypatch.setattr(evaluation, "DEFAULT_HORIZON", NUM_STEPS)
    ladder = [mover(1), *(mover(speed, acts_on_images=True) for speed in (0, 0.1))]
    figures = list(measure_policies(reach, ladder))
    closed = by_name(figures, mode="closed_loop", policies=2)
    assert {name: figure.value for name, figure in closed.items()} == {
        "episode_agreement": 1,
        "mean_rank_violation": 0,
    }
    assert by_name(figures, mode="replay", policies=3)["pearson_r"].value == pytest.approx(1)


def test_what_no_correlation_can_be_had_of_is_refused(reach):
    figures = []
    with pytest.raises(SfvgenError, match="all 2 policies do equally well in the simulator"):
        figures.extend(measure_policies(reach, [mover(0), mover(0.1)]))
    with pytest.raises(SfvgenError, match="at least 2 policies can be compared, got 1"):
        list(measure_policies(reach, [mover(0)]))


@pytest.fixture
def checkpoint(tmp_path, tiny_checkpoint):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    torch.manual_seed(0)
    head = OutcomeHead(4, 4, len(tiny_world_model().tokenizer), 8, 1)
    head.save_pretrained(folder / "outcome_head")
    return folder


def test_the_command_measures_and_draws(tmp_path, checkpoint, monkeypatch, capsys):
    # A model that has learnt nothing finds all policies alike: here episodes are judged by chance.
    draws = np.random.default_rng(0)
    monkeypatch.setattr(evaluation, "replay", lambda *args, **_: [draws.random(1) for _ in args[3]])
    out, plot = tmp_path / "new" / "figures.json", tmp_path / "plot.png"
    command = ["eval", "policy", "--model", str(checkpoint), "--device", "cpu"]
    assert main([*command, "--out", str(out), "--plot", str(plot), "--episodes", "2"]) == 0
    rows = json.loads(out.read_text())["figures"]
    assert {row["name"] for row in rows} == set(FIGURES)
    assert all(row["seeds"] == [100_000, 100_001] for row in rows)
    real = {r["policy"]: r["value"] for r in rows if r.get("where") == "simulator"}
    assert list(real) == [rung.name for rung in LADDER]
    assert (real["still"], real["expert"]) == (0, 1)
    assert plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "policy_success_rate 1 1 [1, 1] policy=expert where=simulator" in printed


@pytest.mark.parametrize("name", ["video_plan", "mpc_cem"])
def test_planners_act_in_both_worlds(checkpoint, monkeypatch, name):
    monkeypatch.setattr(evaluation, "DEFAULT_HORIZON", 2)
    monkeypatch.setattr(
        evaluation, "TASK", {"level": 1, "recall": "none", "steps_per_instruction": 2}
    )
    config = PolicyEvaluationConfig.of(str(checkpoint), "cpu", num_episodes=1)
    config = replace(config, planners=(name,))
    figures = []
    # In two steps neither policy succeeds, which ends in an error after the success rates.
    with suppress(SfvgenError):
        figures.extend(measure_policies(config, [LADDER[0]]))
    told = [f.fields for f in figures if f.fields.get("policy") == name]
    assert [(t["where"], t.get("mode")) for t in told] == [
        ("simulator", None),
        *[("imagination", "replay")] * 2,
        *[("imagination", "closed_loop")] * 2,
    ]
    # A planner of another model is another policy, in the simulator too.
    assert {t["model"] for t in told} == {str(checkpoint)}


def test_a_planner_that_knows_the_way_succeeds_in_both_worlds(reach, monkeypatch):
    planner = VideoPlanner(PointMassInverseDynamics())
    monkeypatch.setattr(VideoPlanner, "from_pretrained", lambda *_: planner)
    figures = list(measure_policies(replace(reach, planners=("video_plan",)), [mover(0)]))
    told = [f.value for f in figures if f.fields.get("policy") == "video_plan"]
    assert told == [1] * 5


def test_a_planner_that_searches_the_simulator_is_replayed_only():
    rungs = {name: planner_rung(name, "tabletop", "cpu") for name in PLANNERS}
    seeing = [name for name, rung in rungs.items() if rung.acts_on_images]
    assert seeing == ["video_plan", "mpc_cem", "mpc_mppi"]
    assert set(PLANNERS) - set(seeing) == {"mpc_simulator"}


def test_unknown_planners_and_equal_names_are_refused(reach):
    with pytest.raises(SfvgenError, match=r"no planner 'expert'; choose from video_plan, mpc_cem"):
        replace(reach, planners=("expert",))
    with pytest.raises(SfvgenError, match=r"two policies are called 'speed 0, turn 16'"):
        list(measure_policies(reach, [mover(0), mover(1), mover(0)]))


def test_a_model_without_outcome_head_is_one_sentence(tmp_path, tiny_checkpoint, capsys):
    out = tmp_path / "a.json"
    command = ["eval", "policy", "--model", str(tiny_checkpoint), "--out", str(out)]
    assert main(command) == 2
    assert "has no outcome head" in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_matplotlib_is_told_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(evaluation, "load_world_model", None)
    files = ["--out", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]
    assert main(["eval", "policy", *files]) == 2
    assert "pip install 'sfvgen-planner[report]'" in capsys.readouterr().err


def test_a_plot_without_figures_is_one_sentence(tmp_path):
    with pytest.raises(SfvgenError, match="has no policy_success_rate"):
        plot_success_rates(tmp_path / "none.json", tmp_path / "a.png")


def test_a_plot_keeps_the_models_of_a_planner_apart(tmp_path, monkeypatch):
    rates = {"first": 0.25, "second": 0.75}
    told = {"name": "policy_success_rate", "policy": "video_plan", "ci95": [0, 1]}
    imagined = {"where": "imagination", "mode": "closed_loop", "criterion": "any_frame"}
    rows = [{**told, "where": "simulator", "model": m, "value": v} for m, v in rates.items()]
    rows += [{**told, **imagined, "model": m, "value": v} for m, v in rates.items()]
    (tmp_path / "two.json").write_text(json.dumps({"figures": rows}))
    drawn = []
    monkeypatch.setattr(
        policy_plot,
        "_draw_point",
        lambda panel, real, imagined, **_: (
            drawn.append((real["value"], imagined["value"])) or panel.errorbar([0], [0])
        ),
    )
    plot_success_rates(tmp_path / "two.json", tmp_path / "a.png")
    assert drawn == [(v, v) for v in rates.values()]


def test_a_plot_of_one_world_alone_is_one_sentence(tmp_path):
    row = {"name": "policy_success_rate", "policy": "expert", "where": "simulator"}
    (tmp_path / "half.json").write_text(json.dumps({"figures": [row]}))
    with pytest.raises(SfvgenError, match="no policy in both the simulator and imagination"):
        plot_success_rates(tmp_path / "half.json", tmp_path / "a.png")
