"""What an autoencoder keeps, measured on ones whose faults are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from sfvgen_planner.evaluation import autoencoder
from sfvgen_planner.evaluation.measure import EvaluationConfig
from sfvgen_planner.evaluation.metrics import MAX_PSNR_DB

EPISODES = {"level": 1, "recall": "none"}


@pytest.fixture(scope="module")
def played():
    return autoencoder.policy_episodes(EPISODES, range(100_000, 100_001))


def measured(monkeypatch, played, fault):
    monkeypatch.setattr(autoencoder, "policy_episodes", lambda env_kwargs, seeds: played)
    model = SimpleNamespace(to=lambda device: model, encode=lambda frames: frames, decode=fault)
    monkeypatch.setattr(autoencoder, "load_world_model", lambda name: model)
    figures = autoencoder.measure_autoencoder(EvaluationConfig(device="cpu"), 1, EPISODES)
    return {(one.name, one.fields["policy"]): one for one in figures}


def test_an_autoencoder_without_faults_keeps_all(monkeypatch, played):
    figures = measured(monkeypatch, played, lambda frames: frames.copy())
    for policy in ("expert", "random", "expert+random"):
        assert figures["autoencoder_psnr_db", policy].value == MAX_PSNR_DB
        assert figures["autoencoder_cube_error_px", policy].value == 0
        assert figures["autoencoder_cube_within_half_px", policy].value == 1


def test_a_picture_that_is_off_by_a_pixel_is_off_by_a_pixel(monkeypatch, played):
    figures = measured(monkeypatch, played, lambda frames: np.roll(frames, 1, axis=-2))
    # No cube stands at the edge of the picture, where rolling would tear it.
    assert figures["autoencoder_cube_error_px", "expert"].value == pytest.approx(1, abs=1e-6)
    assert figures["autoencoder_cube_within_half_px", "expert"].value == 0
    assert figures["autoencoder_psnr_db", "expert"].value < MAX_PSNR_DB
