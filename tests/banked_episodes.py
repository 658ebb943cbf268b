"""Episodes that tests put into a memory bank, each told by its seed."""

import numpy as np
import torch


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def state(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.lora_A.weight": torch.randn(4, 8, generator=generator),
        "num_writes": torch.tensor(seed),
    }


def chunk(seed):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    actions = rng.normal(size=(8, 4)).astype(np.float32)
    return frames, actions, [f"put ü {seed}"] * 8, state(seed)


def record(bank, seed, num_chunks):
    writer = bank.begin(picture(seed))
    for index in range(num_chunks):
        writer.append(*chunk(100 * seed + index))
    writer.close()
    return writer


def assert_holds(episode, seed, num_chunks):
    assert len(episode) == num_chunks
    assert np.array_equal(episode.first_frame(), picture(seed))
    for index in range(num_chunks):
        frames, actions, instructions, memory = chunk(100 * seed + index)
        stored = episode.chunk(index)
        assert np.array_equal(stored.frames, frames)
        assert np.array_equal(stored.actions, actions)
        assert stored.instructions == instructions
        found = episode.state(index)
        assert found.keys() == memory.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in memory.items())
