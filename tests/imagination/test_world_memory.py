"""Imagined worlds that remember, held against single ones with a memory of their own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import (
    EnvStarts,
    ImaginationWrapper,
    Start,
    WorldModelEnv,
    WorldModelVectorEnv,
)
from sfvgen_planner.memory import MEMORY_VARIANTS, EpisodicMemory
from sfvgen_planner.world_model import tiny_world_model
from tests.point_mass import PointMassEnv, PointMassWorldModel, RecordingMemory
from tests.tiny_env import RandomPictureEnv

MEMORY = replace(MEMORY_VARIANTS["ours"], rank=2, num_steps=1, num_noise_draws=1, learning_rate=0.1)
NUM_STEPS = 18
RESET_AT = 10
"""Step before which world 1 begins anew, with a chunk in its memory."""


def new_model():
    # In double precision: what differs then is no rounding.
    return tiny_world_model(denoiser="transformer").to(torch.float64)


def starts(rng):
    """From one to six past frames."""
    shape = (int(rng.integers(1, 7)), 64, 64, 3)
    return Start(rng.integers(0, 256, shape, np.uint8), "put the red cube on the blue pad")


def act(step, row):
    return np.random.default_rng([step, row]).uniform(-1, 1, 4).astype(np.float32)


def together(memory, model, rows=(0, 1, 2), **options):
    """Observations ``(steps, N, H, W, 3)`` of several worlds."""
    envs = WorldModelVectorEnv(
        model, starts, len(rows), memory=memory, autoreset_mode=AutoresetMode.DISABLED, **options
    )
    envs.reset(seed=list(rows))
    frames = []
    for step in range(NUM_STEPS):
        if step == RESET_AT and 1 in rows:
            envs.reset(seed=[7] * len(rows), options={"reset_mask": np.array(rows) == 1})
        frames.append(envs.step(np.stack([act(step, row) for row in rows]))[0])
    return np.stack(frames).astype(int)


class LatentMemory(RecordingMemory):
    """Keeps as pictures what it is told in latents, which are the pictures themselves."""

    def __init__(self, world_model):
        super().__init__(world_model)
        self.actions = []

    def write_batch(self, pasts, chunks, instructions, actions, memories, measure):
        self.actions += list(actions[0])
        frames = [self.world_model.decode(latents) for latents in (pasts, chunks)]
        return super().write_batch(*frames, instructions, actions, memories, measure)


def test_each_world_remembers_what_it_remembers_alone_and_forgets_at_a_reset():
    model = new_model()
    memory = EpisodicMemory(model, MEMORY, num_memories=3)
    found = together(memory, model, num_samples=2)
    assert memory.num_writes == [2, 1, 2]
    for row in range(3):
        own_model = new_model()
        own = EpisodicMemory(own_model, MEMORY)
        world = WorldModelEnv(own_model, starts, memory=own, num_samples=2)
        world.reset(seed=row)
        for step in range(NUM_STEPS):
            if step == RESET_AT and row == 1:
                world.reset(seed=7)
            assert np.abs(found[step, row] - world.step(act(step, row))[0]).max() <= 1
        for name, value in own.state().items():
            assert torch.allclose(memory.state(row)[name].double(), value.double(), atol=1e-5)
    gained = np.abs(found - together(None, new_model(), num_samples=2)).max(axis=(2, 3, 4))
    assert (gained[:8] <= 1).all()
    assert (gained[8:RESET_AT] > 1).all()
    assert (gained[RESET_AT:, [0, 2]] > 1).all()
    assert (gained[RESET_AT:, 1] <= 1).all()


def test_what_a_world_lives_is_what_its_memory_learns():
    model = PointMassWorldModel()
    memory = LatentMemory(model)
    world = WorldModelEnv(model, EnvStarts(PointMassEnv()), memory=memory)
    frames = [world.reset(seed=0)[0]]
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 2)).astype(np.float32)
    for step, action in enumerate(actions):
        frames.append(world.step(action)[0])
        assert len(memory.writes) == (step + 1) // 8
    lived = [np.concatenate(write) for write in memory.writes]
    # The world stood still before its first frame.
    assert np.array_equal(lived[0], frames[:1] * 3 + frames[:9])
    assert np.array_equal(lived[1], frames[5:17])
    assert np.array_equal(memory.actions, actions[:16])
    assert memory.instructions == ["right"] * 2


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_new_episode_begins_with_an_empty_memory_in_every_mode(mode):
    model = PointMassWorldModel()
    memory = RecordingMemory(model)
    envs = WorldModelVectorEnv(
        model, EnvStarts(PointMassEnv()), 1, horizon=2, memory=memory, autoreset_mode=mode
    )
    envs.reset(seed=0)
    assert memory.num_resets == 1
    for _ in range(3):
        truncated = envs.step(np.zeros((1, 2), np.float32))[3]
        if mode is AutoresetMode.DISABLED and truncated.any():
            envs.reset(options={"reset_mask": truncated})
    assert memory.num_resets == 2


def test_worlds_without_a_memory_see_none():
    model = tiny_world_model()
    envs = WorldModelVectorEnv(model, starts, 3)

    def episode():
        envs.reset(seed=0)
        actions = [np.stack([act(step, row) for row in range(3)]) for step in range(2)]
        return np.stack([envs.step(action)[0] for action in actions]).astype(int)

    expected = episode()
    # Two memories do not divide three worlds.
    memory = EpisodicMemory(model, MEMORY, num_memories=2)
    chunks = np.random.default_rng(0).integers(0, 256, (2, 8, 64, 64, 3), np.uint8)
    memory.write_batch(chunks[:, :4], chunks)
    assert np.abs(episode() - expected).max() <= 1


@pytest.mark.parametrize(("num_past", "lengths"), [(4, [1] * 3 + [4] * 3), (2, [1] * 6)])
def test_a_memory_without_the_chunk_as_input_shortens_the_context(num_past, lengths):
    seen = []

    class Model(PointMassWorldModel):
        def __call__(self, past, **kwargs):
            seen.append(past.shape[2])
            return super().__call__(past, **kwargs)

    model = Model()
    memory = RecordingMemory(model)
    memory.num_past_frames = num_past
    world = WorldModelEnv(model, EnvStarts(PointMassEnv()), memory=memory)
    world.reset(seed=0)
    for _ in range(6):
        world.step(np.zeros(2, np.float32))
    assert seen == lengths


def test_memories_that_do_not_fit_are_refused():
    model = tiny_world_model()
    memory = EpisodicMemory(model, MEMORY, num_memories=2)
    with pytest.raises(SfvgenError, match="3 imagined worlds need num_memories=3"):
        WorldModelVectorEnv(model, starts, 3, memory=memory)
    with pytest.raises(SfvgenError, match="need num_memories=1"):
        WorldModelEnv(model, starts, memory=memory)
    with pytest.raises(SfvgenError, match="belongs to another world model"):
        WorldModelVectorEnv(tiny_world_model(), starts, 2, memory=memory)


def test_a_world_whose_memory_another_took_is_told_so():
    model = tiny_world_model()
    memory = EpisodicMemory(model)
    env = ImaginationWrapper(RandomPictureEnv(), model, memory)
    env.reset(seed=0)
    world = WorldModelEnv(model, starts, memory=memory)
    world.reset(seed=0)
    with pytest.raises(SfvgenError, match="another env was reset with memory 0"):
        env.step(np.zeros(4, np.float32))
    world.step(np.zeros(4, np.float32))
    env.reset(seed=0)
    with pytest.raises(SfvgenError, match="another env was reset with memory 0"):
        world.step(np.zeros(4, np.float32))
