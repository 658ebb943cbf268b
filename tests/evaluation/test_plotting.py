"""What the pictures read of a result file."""

import json

import pytest

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation.plotting import error_bars, figure_rows

ROWS = [
    {"name": "one", "value": 2.0, "ci95": [1.5, 4.0]},
    {"name": "other", "value": 0.0, "ci95": [0.0, 0.0]},
    {"name": "one", "value": -1.0, "ci95": [-1.25, -1.0]},
]


def test_the_rows_of_one_figure_are_read_in_order(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"figures": ROWS}))
    assert figure_rows(path, "one", "memory") == [ROWS[0], ROWS[2]]
    with pytest.raises(SfvgenError, match="has no third; measure it with `sfvgen eval memory`"):
        figure_rows(path, "third", "memory")


def test_bars_reach_to_the_ends_of_the_intervals():
    assert error_bars([ROWS[0], ROWS[2]]) == ([0.5, 0.25], [2.0, 0.0])
