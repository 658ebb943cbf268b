"""What a policy sees of real and imagined pictures."""

import numpy as np
import pytest

from sfvgen_planner.imagination import ObservationEncoder
from sfvgen_planner.world_model import tiny_world_model


@pytest.fixture(scope="module")
def model():
    return tiny_world_model()


def test_each_picture_is_encoded_by_itself_with_its_instruction(model):
    encoder = ObservationEncoder(model)
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    texts = ["put the red cube on the blue pad", "", "put the blue cube on the red pad"]
    together = encoder(frames, texts)
    assert {name: values.dtype for name, values in together.items()} == {
        "latents": np.float32,
        "instruction": np.float32,
    }
    for row in range(3):
        assert {name: values[row] for name, values in together.items()} in encoder.space
        alone = encoder(frames[row : row + 1], texts[row : row + 1])
        for name, values in alone.items():
            assert values[0] == pytest.approx(together[name][row], abs=1e-5)
    assert together["latents"] == pytest.approx(
        model.encode(frames[None])[0].transpose(0, 1).numpy(), abs=1e-5
    )


def test_the_same_words_in_another_order_are_another_instruction(model):
    texts = ["put the red cube on the blue pad", "put the blue cube on the red pad", ""]
    codes = ObservationEncoder(model)(np.zeros((3, 64, 64, 3), np.uint8), texts)["instruction"]
    assert np.abs(codes[0] - codes[1]).max() > 0.01
    assert not codes[2].any()
