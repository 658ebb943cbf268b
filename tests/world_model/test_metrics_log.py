import json

import pytest

from sfvgen_planner.world_model.metrics_log import MetricsLog

TWO = '{"step": 5, "loss": 1.5}\n{"step": 10, "loss": 1.0}\n'


@pytest.mark.parametrize("rest", ["", '{"step": 15, "lo', '{"step": 15, "loss": 0.5}\n', "{"])
def test_a_log_goes_on_after_the_step_it_is_given(tmp_path, rest):
    (tmp_path / "metrics.jsonl").write_text(TWO + rest)
    MetricsLog(tmp_path, 10).write(15, {"loss": 0.25})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == TWO + '{"step": 15, "loss": 0.25}\n'


def test_a_line_that_lacks_only_its_end_is_whole(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(TWO[:-1])
    MetricsLog(tmp_path, 10).write(15, {"loss": 0.25})
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == [5, 10, 15]


def test_a_run_that_begins_anew_begins_its_log_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(TWO)
    MetricsLog(tmp_path, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
