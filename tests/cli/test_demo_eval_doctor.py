"""The commands demo, eval and doctor as a user meets them."""

import os
import shutil
import subprocess
import sys

import pytest

from sfvgen_planner.cli.main import main
from sfvgen_planner.evaluation import doctor


def told(capsys):
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.mark.parametrize("command", [["demo"], ["eval", "main-job"]])
def test_an_unwritable_output_is_refused_before_any_work(tmp_path, capsys, command, monkeypatch):
    monkeypatch.setattr("sfvgen_planner.evaluation.demo.load_world_model", None)
    monkeypatch.setattr("sfvgen_planner.evaluation.main_job.load_world_model", None)
    (tmp_path / "file").touch()
    assert main([*command, "--out", str(tmp_path / "file" / "out.json")]) == 2
    out, err = told(capsys)
    assert err.startswith("error: cannot write to the output folder")
    assert err.count("\n") == 1
    assert out == ""


def test_a_missing_model_is_one_sentence(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--model", str(tmp_path / "none")]) == 2
    assert told(capsys)[1].startswith("error: no model called")


def test_a_checkpoint_without_inverse_dynamics_is_one_sentence(tmp_path, tiny_checkpoint, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder, ignore=shutil.ignore_patterns("inverse_dynamics"))
    assert main(["demo", "--out", str(tmp_path / "out"), "--model", str(folder)]) == 2
    assert "inverse_dynamics is missing" in told(capsys)[1]


def test_unknown_figures_are_refused(tmp_path, capsys):
    out = tmp_path / "a.json"
    assert main(["eval", "main-job", "--out", str(out), "--only", "luck"]) == 2
    assert "no figure 'luck'" in told(capsys)[1]
    assert not out.exists()


def test_a_plot_that_cannot_be_written_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sfvgen_planner.evaluation.measure.measure", None)
    (tmp_path / "file").touch()
    plot = str(tmp_path / "file" / "plot.png")
    assert main(["eval", "policy", "--out", str(tmp_path / "a.json"), "--plot", plot]) == 2
    assert told(capsys)[1].startswith("error: cannot write to the output folder")
    plot = str(tmp_path / "plot.xyz")
    assert main(["eval", "policy", "--out", str(tmp_path / "a.json"), "--plot", plot]) == 2
    assert "plot.xyz; end its name in one of" in told(capsys)[1]


def test_the_paper_s_size_is_measured_for_its_cost_alone(tmp_path, capsys):
    out = tmp_path / "a.json"
    assert main(["eval", "memory", "--base-model", "--only", "state_kb", "--out", str(out)]) == 2
    assert "choose among fast_learning_memory_overhead" in told(capsys)[1]
    assert not out.exists()


@pytest.mark.parametrize("option", ["--num-workers", "--num-envs"])
def test_a_number_below_one_is_refused_before_any_work(tmp_path, capsys, option):
    out = tmp_path / "a.json"
    what = ["--only", "success_rate", "--methods", "random", "--levels", "1", "--episodes", "1"]
    assert main(["eval", "planning", "--out", str(out), *what, option, "0"]) == 2
    name = option.removeprefix("--").replace("-", "_")
    assert told(capsys)[1] == f"error: {name} must be at least 1, got 0\n"
    assert not out.exists()


@pytest.mark.parametrize("what", ["memory", "slow-learning", "main-job", "planning", "policy"])
def test_a_model_of_another_environment_is_refused_before_any_work(tmp_path, capsys, what):
    out = tmp_path / "a.json"
    assert main(["eval", what, "--model", "metaworld_reach", "--out", str(out)]) == 2
    assert told(capsys)[1] == (
        "error: metaworld_reach was trained on sfvgen/MetaWorld-v0, but this is measured on "
        "sfvgen/TabletopReturn-v0; give a model of that\n"
    )
    assert not out.exists()


def test_eval_prints_what_it_writes(tmp_path, capsys):
    out = tmp_path / "a.json"
    only = ["--only", "skill_success_rate_random", "--episodes", "1"]
    assert main(["eval", "main-job", "--out", str(out), *only]) == 0
    assert told(capsys)[0].startswith("skill_success_rate_random 0 1 [0, 0]")
    assert out.exists()


def test_a_healthy_installation(tiny_checkpoint, capsys):
    assert main(["doctor", "--model", str(tiny_checkpoint)]) == 0
    out, _ = told(capsys)
    assert "FAIL" not in out
    for name in ("python", "torch", "mujoco", "device", "rendering", "imagination", "disk"):
        assert f"ok    {name}: " in out


def test_a_missing_model_has_a_remedy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_rendered_frame", lambda: "one frame")
    assert main(["doctor", "--model", str(tmp_path / "none")]) == 1
    out, _ = told(capsys)
    assert "FAIL  imagination: no model called" in out
    assert "remedy: give a whole checkpoint" in out


def test_a_missing_library_has_a_remedy(tiny_checkpoint, capsys, monkeypatch):
    real_import = doctor.importlib.import_module

    def without_av(name, *args):
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'")
        return real_import(name, *args)

    monkeypatch.setattr(doctor.importlib, "import_module", without_av)
    assert main(["doctor", "--model", str(tiny_checkpoint)]) == 1
    out, _ = told(capsys)
    assert "FAIL  av: No module named 'av'" in out
    assert "pip install 'sfvgen-planner[report]'" in out


def test_broken_rendering_has_a_remedy(tiny_checkpoint, capsys, monkeypatch):
    def no_gl(*_):
        raise RuntimeError("an OpenGL platform library\nhas not been loaded")

    monkeypatch.setattr("sfvgen_planner.data.environment.make_env", no_gl)
    assert main(["doctor", "--model", str(tiny_checkpoint)]) == 1
    out, _ = told(capsys)
    assert "FAIL  rendering: an OpenGL platform library has not been loaded" in out
    assert "libegl1" in out


def test_a_full_disk_has_a_remedy(tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 1e9)
    assert main(["doctor", "--model", str(tiny_checkpoint)]) == 1
    assert "FAIL  disk" in told(capsys)[0]


def test_doctor_renders_in_a_plain_shell_without_a_display():
    hidden = ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    result = subprocess.run(
        [sys.executable, "-m", "sfvgen_planner", "doctor"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "ok    rendering" in result.stdout
    assert result.returncode == 0, result.stdout
