"""Result files and the files they are written through."""

import json
from datetime import date

import pytest

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation.provenance import git_commit, machine
from sfvgen_planner.evaluation.results import Figure, merge_figures, read_rows
from sfvgen_planner.files import prepare_folder, replacing, write_json

KEYS = {
    "name", "value", "unit", "ci95", "episodes", "seeds", "command", "machine", "git_commit", "date"
}  # fmt: skip


def figure(name, value, **fields):
    return Figure.measured(name, [value, value], "1", range(2), **fields)


def test_a_row_carries_all_that_is_needed(tmp_path):
    path = tmp_path / "a.json"
    merge_figures(path, [figure("rate", 0.5, recall="first")])
    (row,) = json.loads(path.read_text())["figures"]
    assert set(row) == KEYS | {"recall"}
    assert row["value"] == 0.5
    assert row["ci95"] == [0.5, 0.5]
    assert row["seeds"] == [0, 1]
    assert row["episodes"] == 2
    date.fromisoformat(row["date"])


def test_rows_are_replaced_by_name_and_fields_and_others_stay(tmp_path):
    path = tmp_path / "a.json"
    merge_figures(path, [figure("rate", 0.1), figure("rate", 0.2, recall="first")])
    merge_figures(path, [figure("rate", 0.3, recall="first"), figure("speed", 9.0)])
    rows = [(r["name"], r.get("recall"), r["value"]) for r in read_rows(path)]
    assert rows == [("rate", None, 0.1), ("rate", "first", 0.3), ("speed", None, 9.0)]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "[]", '{"figures": [1]}', '{"rows": []}'])
def test_a_foreign_file_is_refused_and_left_alone(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(SfvgenError, match="no result file"):
        merge_figures(path, [figure("rate", 0.1)])
    assert path.read_text() == text


def interrupted_write(path):
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SfvgenError, match="cannot write"):
        prepare_folder(tmp_path / "file" / "out")
    assert prepare_folder(tmp_path / "a" / "b").is_dir()


def test_the_machine_is_a_model_and_no_name():
    import platform

    assert "core" in machine()
    assert platform.node() not in machine()


def test_the_commit_is_a_hash_or_none():
    commit = git_commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/usr/bin/sfvgen", "eval", "speed"], "sfvgen eval speed"),
        (["/lib/sfvgen_planner/__main__.py", "eval", "speed"], "sfvgen eval speed"),
        (["benchmarks/a.py", "--out", "b c.json"], "python benchmarks/a.py --out 'b c.json'"),
    ],
)
def test_a_figure_tells_the_command_that_measures_it_again(argv, command, monkeypatch):
    monkeypatch.setattr("sys.argv", argv)
    assert Figure.measured("a", [1.0], "1", [0]).command == command
