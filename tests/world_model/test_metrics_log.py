import io
import json
import logging
import sys

import numpy as np
import pytest
from PIL import Image

from sfvgen_planner.world_model.metrics_log import MetricsLog

TWO = '{"step": 5, "loss": 1.5}\n{"step": 10, "loss": 1.0}\n'


def events(folder):
    """What TensorBoard itself reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return read


def write(folder, start, *entries):
    with MetricsLog(folder, start) as log:
        for step, values in entries:
            log.write(step, values)


@pytest.mark.parametrize("rest", ["", '{"step": 15, "lo', '{"step": 15, "loss": 0.5}\n', "{"])
def test_a_log_goes_on_after_the_step_it_is_given(tmp_path, rest):
    (tmp_path / "metrics.jsonl").write_text(TWO + rest)
    write(tmp_path, 10, (15, {"loss": 0.25}))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == TWO + '{"step": 15, "loss": 0.25}\n'


@pytest.mark.parametrize("damage", [b"\xff", b'{"loss": 1}\n', b"5\n", b"[]\n", b'{"step": "5"}\n'])
def test_a_damaged_log_does_not_stop_a_run(tmp_path, damage):
    (tmp_path / "metrics.jsonl").write_bytes(TWO.encode() + damage)
    write(tmp_path, 10, (15, {"loss": 0.25}))
    assert (tmp_path / "metrics.jsonl").read_text() == TWO + '{"step": 15, "loss": 0.25}\n'


def test_a_line_that_lacks_only_its_end_is_whole(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(TWO[:-1])
    write(tmp_path, 10, (15, {"loss": 0.25}))
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == [5, 10, 15]


def test_a_run_that_begins_anew_begins_its_log_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(TWO)
    write(tmp_path, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_tensorboard_reads_the_scalars_and_no_step_twice(tmp_path):
    write(tmp_path, 0, (5, {"loss": 1.5, "rate": 0.1}), (10, {"loss": 1.0}), (15, {"loss": 9.0}))
    write(tmp_path, 10, (15, {"loss": 0.5}))
    read = events(tmp_path)
    assert read.Tags()["scalars"] == ["loss", "rate"]
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(5, 1.5), (10, 1.0), (15, 0.5)]


def test_images_go_to_tensorboard_and_numbers_to_both(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    write(tmp_path, 0, (5, {"loss": 1.5, "frames": image}))
    [event] = events(tmp_path).Images("frames")
    shown = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    assert event.step == 5
    assert (shown == image).all()
    [line] = (tmp_path / "metrics.jsonl").open()
    assert json.loads(line) == {"step": 5, "loss": 1.5}


def test_what_was_written_is_on_the_disk_at_once(tmp_path):
    MetricsLog(tmp_path, 0).write(5, {"loss": 1.5})
    assert [e.value for e in events(tmp_path).Scalars("loss")] == [1.5]


def test_without_tensorboard_the_json_lines_are_written_and_it_is_told(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.INFO):
        write(tmp_path, 0, (5, {"loss": 1.5}))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert "tensorboard is not installed" in caplog.text


def test_only_the_main_process_writes(tmp_path):
    with MetricsLog(tmp_path, 0, enabled=False) as log:
        log.write(5, {"loss": 1.5})
    assert not list(tmp_path.iterdir())
