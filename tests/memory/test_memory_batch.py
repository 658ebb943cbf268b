import numpy as np
import pytest
import torch

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.memory import EpisodicMemory
from tests.small_memories import FRAMES, of_both_kinds, write


@of_both_kinds
def test_separate_memories_and_a_batch_of_them_learn_and_imagine_the_same(new_model, config):
    """Three episodes, of which the second has written more and the third nothing.

    In double precision: Adam's first step is a gradient's sign, which rounding turns where there
    is none.
    """

    def new_double():
        return new_model().to(torch.float64)

    chunks = np.random.default_rng(1).integers(0, 256, (2, 12, 64, 64, 3), dtype=np.uint8)
    past = np.random.default_rng(2).integers(0, 256, (3, 4, 64, 64, 3), dtype=np.uint8)
    generators = [torch.Generator().manual_seed(seed) for seed in range(6)]
    together = new_double()
    memory = EpisodicMemory(together, config, num_memories=3)
    writes = memory.write_batch(chunks[:, :4], chunks[:, 4:], memories=[0, 1])
    more = memory.write_batch(FRAMES[None, :4], FRAMES[None, 4:], memories=[1])
    assert memory.num_writes == [1, 2, 0]
    videos = together(
        past.repeat(2, 0), num_frames=3, num_inference_steps=1, generator=generators
    ).latents
    slow = new_double()
    for index in range(3):
        model = new_double()
        alone = EpisodicMemory(model, config)
        if index < 2:
            write_alone = alone.write(chunks[index, :4], chunks[index, 4:])
            assert write_alone.loss_after == pytest.approx(writes[index].loss_after, abs=1e-4)
        if index == 1:
            write_alone = alone.write(FRAMES[:4], FRAMES[4:])
            assert write_alone.loss_before == pytest.approx(more[0].loss_before, abs=1e-4)
        generators = [torch.Generator().manual_seed(seed) for seed in (2 * index, 2 * index + 1)]
        video = model(
            past[[index, index]], num_frames=3, num_inference_steps=1, generator=generators
        ).latents
        generators = [torch.Generator().manual_seed(seed) for seed in (2 * index, 2 * index + 1)]
        plain = slow(
            past[[index, index]], num_frames=3, num_inference_steps=1, generator=generators
        ).latents
        learnt = (video - plain).norm()
        assert (learnt < 1e-3) == (index == 2)
        assert (videos[2 * index : 2 * index + 2] - video).norm() < 1e-3


def three_memories(model, config):
    """The second has written more than the first and the third nothing."""
    memory = EpisodicMemory(model, config, num_memories=3)
    chunks = np.random.default_rng(1).integers(0, 256, (3, 12, 64, 64, 3), dtype=np.uint8)
    memory.write_batch(chunks[:2, :4], chunks[:2, 4:], memories=[0, 1])
    memory.write_batch(chunks[2:, :4], chunks[2:, 4:], memories=[1])
    return memory


def imagine_rows(model, rows):
    """Each row's own past and noise."""
    generators = [torch.Generator().manual_seed(row) for row in rows]
    past = np.random.default_rng(2).integers(0, 256, (3, 4, 64, 64, 3), dtype=np.uint8)[list(rows)]
    return model(past, num_frames=3, num_inference_steps=1, generator=generators).latents


def test_some_of_the_memories_are_seen_as_if_there_were_no_others(new_model, config):
    model = new_model()
    memory = three_memories(model, config)
    whole, plain = imagine_rows(model, range(3)), imagine_rows(new_model(), range(3))
    assert (whole[:2] - plain[:2]).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3
    for rows in ([2, 0], [1], [1, 0, 2]):
        with memory.showing(rows):
            assert torch.allclose(imagine_rows(model, rows), whole[rows], atol=1e-4)
    # A memory that has written nothing is not seen.
    with memory.showing([2]):
        assert torch.allclose(imagine_rows(model, [2]), plain[[2]], atol=1e-4)
    with memory.showing([1]):
        memory.reset([1])
        assert torch.allclose(imagine_rows(model, [1]), plain[[1]], atol=1e-4)
    assert torch.allclose(imagine_rows(model, range(3))[[0, 2]], whole[[0, 2]], atol=1e-4)
    for bad in ([3], [0, 0], []):
        with pytest.raises(SfvgenError, match="different numbers from 0 to 2"), memory.showing(bad):
            pass


def test_a_compiled_model_sees_some_of_the_memories(new_model, config):
    model = new_model()
    memory = three_memories(model, config)
    whole = imagine_rows(model, range(3))
    model.compile(backend="eager")
    with memory.showing([1, 0]):
        assert torch.allclose(imagine_rows(model, [1, 0]), whole[[1, 0]], atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_pieces_of_a_batch_keep_to_their_memories(new_model, config, compiled):
    model = new_model()
    memory = EpisodicMemory(model, config, num_memories=2)
    chunks = np.random.default_rng(1).integers(0, 256, (2, 12, 64, 64, 3), dtype=np.uint8)
    memory.write_batch(chunks[:, :4], chunks[:, 4:])

    def imagine():
        generator = torch.Generator().manual_seed(0)
        past = chunks[[0, 0, 0, 1, 1, 1], :4]
        return model(past, num_frames=3, num_inference_steps=1, generator=generator).latents

    whole = imagine()
    if compiled:
        # Fills the three samples of each memory up to four.
        model.compile(backend="eager")
        assert torch.allclose(imagine(), whole, atol=1e-4)
    model.max_batch_size = 4
    assert torch.allclose(imagine(), whole, atol=1e-4)
    memory.write_batch(chunks[:1, :4], chunks[:1, 4:], memories=[0])
    written = imagine()
    assert (written[:3] - whole[:3]).abs().max() > 1e-3
    assert torch.allclose(written[3:], whole[3:], atol=1e-4)
    with pytest.raises(SfvgenError, match="2 memories need a batch of as many samples"):
        model(chunks[[0, 0, 1], :4], num_frames=1, num_inference_steps=1)


def test_wrong_numbers_of_memories_are_told(model):
    with pytest.raises(SfvgenError, match="num_memories"):
        EpisodicMemory(model, num_memories=0)
    memory = EpisodicMemory(model, num_memories=2)
    with pytest.raises(SfvgenError, match="2 memories need as many chunks"):
        write(memory)
    for misuse in (
        lambda: memory.reset([2]),
        lambda: memory.state(2),
        lambda: memory.load(memory.state(), -1),
    ):
        with pytest.raises(SfvgenError, match="from 0 to 1"):
            misuse()
