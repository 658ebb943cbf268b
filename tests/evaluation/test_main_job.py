"""The main job's figures on sizes of nothing."""

import json

import pytest

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation.main_job import FIGURES, MainJobConfig
from sfvgen_planner.evaluation.measure import measure


@pytest.fixture
def config(tiny_checkpoint):
    return MainJobConfig.of(str(tiny_checkpoint), "cpu", num_episodes=1)


def test_parts_are_measured_alone_and_merged(tmp_path, config):
    out = tmp_path / "new" / "main_job.json"
    measure(out, config, FIGURES, ["expert_success_rate"])
    measure(out, config, FIGURES, ["skill_success_rate_random", "gripper_error_px"])
    rows = json.loads(out.read_text())["figures"]
    names = {row["name"] for row in rows}
    # Figures of one measurement come together.
    assert names == {
        "expert_success_rate",
        "skill_success_rate_random",
        "action_psnr_gain_db",
        "imagined_psnr_db",
        "copied_last_frame_psnr_db",
        "gripper_error_px",
        "gripper_error_px_shuffled_actions",
    }
    expert = [row for row in rows if row["name"] == "expert_success_rate"]
    assert [row["recall"] for row in expert] == ["first", "previous"]
    assert all(row["seeds"] == [100_000] for row in expert)
    by_name = {row["name"]: row["value"] for row in rows if row.get("policy") == "expert+random"}
    gain = by_name["imagined_psnr_db"] - by_name["copied_last_frame_psnr_db"]
    assert by_name["action_psnr_gain_db"] == pytest.approx(gain)


def test_the_skill_is_planned_without_memory(tmp_path, config):
    (figure,) = measure(tmp_path / "a.json", config, FIGURES, ["skill_success_rate"])
    assert figure.fields["memory"] is False
    assert figure.fields["recall"] == "none"
    assert figure.value in (0.0, 1.0)


def test_speed_is_measured(tmp_path, config):
    (figure,) = measure(tmp_path / "a.json", config, FIGURES, ["env_frames_per_second"])
    assert figure.value > 0


def test_unknown_figures_and_devices_are_refused(tmp_path, config):
    with pytest.raises(SfvgenError, match="skill_success_rate"):
        measure(tmp_path / "a.json", config, FIGURES, ["skill"])
    for device in ("abacus", "meta"):
        with pytest.raises(SfvgenError, match=f"the device '{device}' cannot be used"):
            MainJobConfig.of("tabletop", device)
    with pytest.raises(SfvgenError, match="episode"):
        MainJobConfig.of("tabletop", num_episodes=0)
    assert not (tmp_path / "a.json").exists()


def test_every_figure_of_the_main_job_is_there():
    assert set(FIGURES) == {
        "skill_success_rate",
        "skill_success_rate_random",
        "expert_success_rate",
        "action_psnr_gain_db",
        "gripper_error_px",
        "gripper_error_px_shuffled_actions",
        "env_frames_per_second",
        "demo_seconds",
    }
