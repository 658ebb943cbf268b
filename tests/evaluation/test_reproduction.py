"""Figures that are made again by their own commands."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sfvgen_planner.cli.main import main
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation import reproduction
from sfvgen_planner.evaluation.reproduction import run_commands

# Writes the row that it is told to, with an interval of 1 to either side, and counts its runs.
SCRIPT = """
import json, sys, time
_, name, value, flag, out = sys.argv
open("runs.txt", "a").write(name + "\\n")
if name == "slow":
    time.sleep(600)
if name == "broken":
    sys.exit("no such device")
row = {"name": name, "value": float(value), "ci95": [float(value) - 1, float(value) + 1],
       "command": " ".join(["python", *sys.argv]), "horizon": 4}
open(out, "w").write(json.dumps({"figures": [row]}))
"""


def row(name, value, was, **fields):
    """A row whose command gives `value`, and which says that it `was` another."""
    return {
        "name": name,
        "value": was,
        "ci95": [was - 1, was + 1],
        "command": f"python benchmarks/measure.py {name} {value}",
        **fields,
    }


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with a benchmark; `write` makes its result file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/measure.py").write_text(SCRIPT)
    return tmp_path


def write(folder, *rows):
    file = folder / "results.json"
    file.write_text(json.dumps({"figures": rows}))
    return file


def reproduce(file, *arguments):
    return main(["reproduce", str(file), "--out", "again", *arguments])


def runs():
    return sorted(open("runs.txt").read().split())


def test_intervals_that_overlap_agree(checkout, capsys):
    file = write(checkout, row("error_px", 2.0, was=3.5, horizon=4))
    assert reproduce(file) == 0
    assert "agrees  error_px 3.5 [2.5, 4.5] now 2 [1, 3] horizon=4" in capsys.readouterr().out


def test_an_interval_apart_or_a_row_that_is_not_made_is_told(checkout, capsys):
    """Of two rows that differ in a field alone, the command makes one."""
    apart, other = (row("error_px", 2.0, was=5.0, horizon=h) for h in (4, 8))
    file = write(checkout, apart, other)
    before = file.read_text()
    assert reproduce(file, "--jobs", "2") == 1
    out = capsys.readouterr().out
    assert "APART   error_px 5 [4, 6] now 2 [1, 3] horizon=4" in out
    assert "missing error_px 5 [4, 6] horizon=8" in out
    assert runs() == ["error_px"], "a command that two rows name runs once"
    assert file.read_text() == before


def test_rows_are_chosen_by_name_and_fields(checkout):
    rows = [row(name, 1.0, was=1.0, horizon=4, variant="ours") for name in ("a", "b", "c")]
    rows[1]["variant"] = "none"
    file = write(checkout, *rows)
    reproduce(file, "--only", "a", "b", "--where", "variant=ours", "horizon=4")
    assert runs() == ["a"]
    with pytest.raises(SystemExit):
        reproduce(file, "--where", "variant")
    assert reproduce(file, "--where", "horizon=5") == 2


def test_new_rows_can_replace_the_old_ones(checkout):
    kept = row("untouched", 1.0, was=9.0)
    file = write(checkout, row("error_px", 2.0, was=5.0, horizon=4), kept)
    reproduce(file, "--only", "error_px", "--replace")
    new, other = json.loads(file.read_text())["figures"]
    assert new["value"] == 2.0
    assert new["command"] == "python benchmarks/measure.py error_px 2.0"
    assert other == kept


def test_a_command_that_fails_is_told_and_run_again(checkout, capsys):
    file = write(checkout, row("broken", 1.0, was=1.0), row("fine", 1.0, was=1.0, horizon=4))
    assert reproduce(file) == 1
    out = capsys.readouterr().out
    assert "measure.py broken 1.0 failed" in out
    assert "no such device" in out
    assert "agrees  fine" in out
    reproduce(file)
    assert runs() == ["broken", "broken", "fine"]


def test_interrupted_commands_are_stopped_and_run_again(checkout, monkeypatch):
    commands = [row(name, 1.0, was=1.0)["command"] for name in ("fine", "slow")]
    processes = []
    popen, sleep = subprocess.Popen, time.sleep

    def start(*args, **kwargs):
        processes.append(popen(*args, **kwargs))
        return processes[-1]

    def interrupt(seconds):
        sleep(seconds)
        if len(processes) == 2:
            monkeypatch.undo()
            monkeypatch.chdir(checkout)
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_commands(commands, checkout / "again")
    assert all(process.poll() is not None for process in processes)
    (checkout / "benchmarks/measure.py").write_text(SCRIPT.replace("600", "0"))
    assert run_commands(commands, checkout / "again") == []
    assert runs().count("fine") == 1
    assert sorted(path.suffix for path in (checkout / "again").iterdir()) == [
        ".json",
        ".json",
        ".log",
        ".log",
    ]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("rm -rf data", "only `sfvgen eval ...` and `python benchmarks/...` are run again"),
        ("sfvgen collect --out data", "are run again"),
        ("python elsewhere.py", "are run again"),
        ("python benchmarks/../elsewhere.py", "are run again"),
        ("python benchmarks/gone.py", "run this from the root of a checkout"),
    ],
)
def test_no_other_program_is_run(checkout, command, message):
    with pytest.raises(SfvgenError, match=message):
        run_commands([row("fine", 1.0, was=1.0)["command"], command], checkout / "again")
    assert not (checkout / "runs.txt").exists()


def test_a_file_that_is_missing_is_told(checkout, capsys):
    assert reproduce(checkout / "gone.json") == 2
    assert "there is no result file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("command", None),
        ("command", "sfvgen eval 'memory"),
        ("command", "rm -rf data"),
        ("ci95", None),
        ("ci95", "ab"),
        ("ci95", ["a", "b"]),
        ("value", "x"),
        ("horizon", float("nan")),
    ],
)
def test_a_row_that_cannot_be_made_again_is_told(field, value, checkout, capsys):
    broken = row("broken", 1.0, was=1.0) | {field: value}
    file = write(checkout, broken, row("fine", 1.0, was=1.0, horizon=4))
    for arguments in ((), ("--list",)):
        assert reproduce(file, *arguments) == 2
        error = capsys.readouterr().err
        assert "a row broken of" in error
        assert "leave it out with --only or --where" in error
    assert not (checkout / "runs.txt").exists()
    assert reproduce(file, "--only", "fine") == 0


@pytest.mark.parametrize(
    "files",
    [
        "--plot docs/memory.png --only a --out 'my results.json'",
        "--plot=docs/memory.png --only a --ou 'my results.json'",
        "--out a.json --plo docs/memory.png --only a --plot b.png --out=b.json",
    ],
)
def test_files_that_a_command_wrote_are_not_written_again(files):
    """What `--plot` draws would lack the rows of other commands."""
    command = f"sfvgen --verbose eval memory {files}"
    arguments = reproduction._arguments(command)
    assert arguments[1:] == ["-m", "sfvgen_planner", "eval", "memory", "--only", "a"]


def test_what_ends_the_run_ends_its_commands(checkout):
    script = SCRIPT.replace("import json", "import os, json")
    script = script.replace("time.sleep(600)", "print(os.getpid(), flush=True); time.sleep(600)")
    (checkout / "benchmarks/measure.py").write_text(script)
    file = write(checkout, row("slow", 1.0, was=1.0))
    command = [sys.executable, "-m", "sfvgen_planner", "reproduce", str(file), "--out", "again"]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    logs = []
    while not any(logs):
        assert run.poll() is None
        time.sleep(0.1)
        logs = [log.read_text() for log in (checkout / "again").glob("*.log")]
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(logs[0].split()[0]), 0)


def test_only_the_commands_are_shown(checkout, capsys):
    file = write(checkout, row("a", 1.0, was=1.0), row("a", 1.0, was=1.0, horizon=8))
    assert reproduce(file, "--list") == 0
    assert capsys.readouterr().out == "python benchmarks/measure.py a 1.0\n"
    assert not (checkout / "again").exists()


def test_several_gpus_are_shared_out(checkout, monkeypatch):
    script = SCRIPT.replace('"runs.txt"', '"gpus.txt"').replace("(name", "(os.environ[VISIBLE]")
    script = script.replace("import json", "VISIBLE = 'CUDA_VISIBLE_DEVICES'\nimport os, json")
    (checkout / "benchmarks/measure.py").write_text(script)
    monkeypatch.setattr(reproduction.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    commands = [row(name, 1.0, was=1.0)["command"] for name in "abcd"]
    assert run_commands(commands, checkout / "again", num_jobs=4) == []
    assert sorted((checkout / "gpus.txt").read_text().split()) == ["3", "3", "5", "5"]
