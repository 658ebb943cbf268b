"""What tests of episodic memories write and imagine."""

import numpy as np
import pytest
import torch

FRAMES = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)


of_both_kinds = pytest.mark.parametrize("new_model", ["unet", "transformer"], indirect=True)


def video(model):
    generator = torch.Generator().manual_seed(0)
    past = FRAMES[None, :4]
    return model(past, "return the red cube", num_frames=3, generator=generator).latents


def write(memory, times=1):
    return [memory.write(FRAMES[:4], FRAMES[4:]) for _ in range(times)]
