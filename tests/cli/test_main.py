import argparse
import os
import platform
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from sfvgen_planner import __version__
from sfvgen_planner.cli import main as cli
from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.errors import SfvgenError
from tests.data.counting_env import COUNTING, SCRIPTED


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sfvgen-planner {__version__}\n"


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    parser = cli.build_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    assert len(commands.choices) == len(cli.COMMANDS)
    for name in commands.choices:
        with pytest.raises(SystemExit) as caught:
            cli.main([name, "--help"])
        assert caught.value.code == 0
        assert f"usage: sfvgen {name}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["doctor", "eval memory"])
def test_verbose_may_stand_anywhere(command: str) -> None:
    words = command.split()
    for place in range(len(words) + 1):
        assert cli.build_parser().parse_args([*words[:place], "--verbose", *words[place:]]).verbose
    assert not cli.build_parser().parse_args(words).verbose


def test_every_module_of_the_package_is_a_command() -> None:
    modules = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert modules - {"__init__", "main"} == set(cli.COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sfvgen_planner.cli.main import build_parser; build_parser();"
        "print(sorted({'torch', 'numpy', 'gymnasium', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A command `fail` that raises what the test sets."""
    holder = types.SimpleNamespace(error=None, resumes=False)

    def run(args: object) -> int:
        raise holder.error

    def add_parser(subparsers: object) -> None:
        parser = subparsers.add_parser("fail")  # type: ignore[attr-defined]
        parser.set_defaults(run=run, resumes=holder.resumes)

    module = types.ModuleType("sfvgen_planner.cli.fail")
    module.add_parser = add_parser  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "COMMANDS", ("fail",))
    return holder


def test_bad_input_is_one_line_and_code_2(
    failing: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    failing.error = SfvgenError("the door is locked; open it")
    assert cli.main(["fail"]) == 2
    assert capsys.readouterr().err == "error: the door is locked; open it\n"


def test_interruption_tells_how_to_go_on(
    failing: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    failing.error = KeyboardInterrupt()
    assert cli.main(["fail"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
    failing.resumes = True
    assert cli.main(["fail"]) == 130
    assert "the same command goes on from here: sfvgen fail" in capsys.readouterr().err


def test_bugs_keep_their_traceback(failing: types.SimpleNamespace) -> None:
    failing.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cli.main(["fail"])


def test_collect_and_convert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    out = tmp_path / "store"
    arguments = ["collect", "--env", COUNTING, "--policy", SCRIPTED, "--out", str(out)]
    assert cli.main([*arguments, "--episodes", "2", "--seed", "7", "--image-size", "4"]) == 0
    assert f"{out}: 2 episodes, " in capsys.readouterr().out
    store = EpisodeStore.open(out)
    assert [episode.seed for episode in store] == [7, 8]
    assert store.spec.image_size == (4, 4)

    assert cli.main(["convert", str(out), "minari:counting-v0"]) == 0
    assert cli.main(["convert", "minari:counting-v0", str(tmp_path / "back")]) == 0
    assert EpisodeStore.open(tmp_path / "back").entries == store.entries


def test_collect_from_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {{sources: [{{env_id: '{COUNTING}', policy: random, episodes: 3}}]}}\n"
    )
    out = str(tmp_path / "store")
    assert cli.main(["collect", "--recipe", str(recipe), "--out", out]) == 0
    assert len(EpisodeStore.open(out)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["collect", "--env", "Nothing-v0", "--out", "{tmp}/s"], "'Nothing-v0'"),
        (["collect", "--env", COUNTING, "--out", "{tmp}/s", "--env-kwargs", "{"], "must be JSON"),
        (["collect", "--env", COUNTING, "--out", "{tmp}/s", "--env-kwargs", "[1]"], "JSON object"),
        (["collect", "--env", COUNTING, "--out", "/proc/self/no/s"], "cannot make the folder"),
        (["collect", "--recipe", "{tmp}/no.yaml", "--out", "{tmp}/s"], "cannot read the recipe"),
        (
            ["collect", "--recipe", "{tmp}/no.yaml", "--episodes", "3", "--out", "{tmp}/s"],
            "--episodes goes with --env",
        ),
        (["convert", "{tmp}/a", "{tmp}/b"], "the other minari:DATASET-ID"),
        (["convert", "{tmp}/a", "minari:a-v0"], "it does not exist"),
        (["convert", "minari:a", "{tmp}/b"], "with a version at the end"),
        (["collect", "--env", COUNTING, "--out", "{tmp}/{long}"], "x: File name too long"),
        (["convert", "minari:a-v0", "{tmp}/{long}"], "x: File name too long"),
        (["reproduce", "{tmp}/{long}"], "x: File name too long"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    names = {"tmp": str(tmp_path), "long": 300 * "x"}
    assert cli.main([re.sub(r"{(\w+)}", lambda m: names[m[1]], word) for word in arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not [path for path in tmp_path.iterdir() if path.name != "minari"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's mallinfo2")
@pytest.mark.parametrize(("settings", "kept"), [({}, True), ({"MALLOC_TOP_PAD_": "0"}, False)])
def test_large_tensors_that_were_freed_stay_with_the_process(
    settings: dict[str, str], kept: bool
) -> None:
    # glibc itself tells how much of an 80 MB tensor it maps from the system, to be given back.
    script = """
import ctypes, torch
from sfvgen_planner.cli.main import main
class Told(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd".split()]
    _fields_ += [("rest", ctypes.c_size_t * 5)]
try:
    main(["--version"])
except SystemExit:
    pass
tell = ctypes.CDLL(None).mallinfo2
tell.restype = Told
before = tell().hblkhd
tensor = torch.ones(20_000_000)
print(tell().hblkhd - before)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    mapped = int(done.stdout.splitlines()[-1])
    assert mapped == 0 if kept else mapped >= 80_000_000


def test_output_that_nothing_reads_any_more_ends_quietly(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    listed = [sys.executable, "-m", "sfvgen_planner", "reproduce", "results/speed.json", "--list"]
    ended = subprocess.run(listed, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize(
    ("redirection", "code", "errors"),
    [(">&-", 0, ""), ("> /dev/full", 2, "error: No space left on device\n")],
)
def test_output_that_cannot_be_written(redirection: str, code: int, errors: str) -> None:
    command = f'"$0" -m sfvgen_planner reproduce results/speed.json --list {redirection}'
    ended = subprocess.run(
        ["sh", "-c", command, sys.executable], stderr=subprocess.PIPE, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (code, errors)
