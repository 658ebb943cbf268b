"""Whatever is written, a full disk ends it in one sentence, and what was there stays."""

import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest
from stable_baselines3 import SAC

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation.policy_training import save
from sfvgen_planner.evaluation.videos import write_film_strip, write_mp4
from sfvgen_planner.files import write_json, writing_errors
from sfvgen_planner.memory import EpisodicMemory, MemoryConfig
from sfvgen_planner.world_model import tiny_world_model
from tests.point_mass import PointMassEnv

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)


@contextmanager
def room_for(num_bytes):
    """No file may grow beyond this, as on a disk that has no more room."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)


def write_memory(path):
    memory = EpisodicMemory(tiny_world_model(), MemoryConfig(rank=4))
    memory.save_pretrained(path.parent)


WRITERS = {
    "results.json": lambda path: write_json(path, {"a": "b" * 2000}),
    "video.mp4": lambda path: write_mp4(path, FRAMES),
    "strip.png": lambda path: write_film_strip(path, FRAMES, FRAMES, [""] * len(FRAMES)),
    "policy.zip": lambda path: save(SAC("MlpPolicy", PointMassEnv(), buffer_size=10), path),
    "adapter_model.safetensors": write_memory,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")
    with room_for(1000), pytest.raises(SfvgenError, match=f"cannot write .*{name} .*make room"):
        WRITERS[name](path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", WRITERS)
def test_with_room_it_is_written(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")
    WRITERS[name](path)
    assert path.stat().st_size > 1000


def test_a_full_disk_that_a_model_meets_is_told_too(tmp_path):
    with room_for(1000), pytest.raises(SfvgenError, match=r"cannot write .*model .*write it again"):
        tiny_world_model().save_pretrained(tmp_path / "model")


def test_a_full_disk_that_a_tokenizer_meets_is_told_too(tmp_path):
    tokenizer = tiny_world_model().tokenizer
    with (
        room_for(1000),
        pytest.raises(SfvgenError, match=r"cannot write .*model \(File too large"),
        writing_errors(tmp_path / "model"),
    ):
        tokenizer.save_pretrained(tmp_path / "model")


def test_other_errors_than_those_of_writing_keep_their_traceback(tmp_path):
    for error in (ZeroDivisionError(), Exception("no room for thought"), SfvgenError("told")):
        with pytest.raises(type(error)) as caught, writing_errors(tmp_path):
            raise error
        assert caught.value is error
