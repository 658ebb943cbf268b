import numpy as np
import pytest
import torch

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.batching import CPU_BATCH_SIZE, MemoryCap, run_in_pieces


def test_pieces_are_joined_in_order_and_none_is_handed_on():
    sizes = []

    def add(left, nothing, right):
        assert nothing is None
        sizes.append(len(left))
        return left + right

    left, right = torch.arange(10).reshape(5, 2), torch.arange(5)[:, None]
    assert torch.equal(run_in_pieces(add, 2, left, None, right), left + right)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(("start", "sizes"), [(8, [8, 4, 2, 2, 2, 1]), (100, [7, 4, 2, 2, 2, 1])])
def test_a_piece_that_does_not_fit_is_halved(start, sizes):
    asked = []

    def double(values):
        asked.append(len(values))
        if len(values) > 2:
            raise torch.OutOfMemoryError("no")
        return 2 * values

    values = torch.arange(7)
    assert torch.equal(run_in_pieces(double, start, values), 2 * values)
    assert asked == [min(size, 7) for size in sizes]


def test_one_sample_too_large_is_told():
    def never(values):
        raise torch.OutOfMemoryError("one sample too many")

    with pytest.raises(torch.OutOfMemoryError, match="one sample too many"):
        run_in_pieces(never, 4, torch.arange(3))


def test_a_gpu_is_asked_how_much_is_free(monkeypatch):
    """8 of 10 GB are used; a sample of 1 GB is measured once."""
    runs, free = [], 10 * 2**30

    def measured(function, device, *tensors):
        runs.append(function(tensors[0][:1]))
        return 2**30

    class OnGpu(torch.Tensor):
        device = torch.device("cuda")

    monkeypatch.setattr("sfvgen_planner.world_model.batching._peak_bytes", measured)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    cap = MemoryCap()
    many = torch.zeros(100, 2).as_subclass(OnGpu)
    assert cap.largest_batch("work", lambda piece: piece.shape, many) == 8
    free = 0
    assert cap.largest_batch("work", lambda piece: piece.shape, many) == 1
    assert runs == [(1, 2)]


def test_elsewhere_the_size_is_fixed():
    assert MemoryCap().largest_batch("work", torch.neg, torch.zeros(1000)) == CPU_BATCH_SIZE


@pytest.mark.parametrize("common_noise", [False, True])
def test_what_is_imagined_does_not_depend_on_the_pieces(common_noise):
    model = tiny_world_model()
    rng = np.random.default_rng(0)
    past = rng.integers(0, 256, (5, 4, 64, 64, 3), dtype=np.uint8)
    actions = rng.uniform(-1, 1, (5, 10, 4)).astype(np.float32)
    texts = ["return the red cube", None, "put the cube down", None, "return the red cube"]
    sizes = []
    model.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))

    def imagine():
        """Two chunks, guided, each sample with an instruction of its own."""
        sizes.clear()
        return model(
            past,
            texts,
            actions,
            num_inference_steps=2,
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(0),
            common_noise=common_noise,
        )

    whole = imagine()
    assert set(sizes) == {5}
    model.max_batch_size = 2
    split = imagine()
    assert set(sizes) == {1, 2}
    assert torch.allclose(split.latents, whole.latents, atol=1e-4)
    assert np.abs(split.frames.astype(int) - whole.frames).max() <= 1
    model.max_batch_size = 0
    with pytest.raises(SfvgenError, match="max_batch_size must be at least 1, got 0"):
        imagine()


def test_frames_are_encoded_in_pieces_that_fit():
    model = tiny_world_model()
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 64, 64, 3), dtype=np.uint8)
    sizes = []
    model.vae.encoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    latents = model.encode(frames)
    assert sizes == [CPU_BATCH_SIZE, 80 - CPU_BATCH_SIZE]
    assert torch.allclose(latents[1:, :, 30:], model.encode(frames[1:, 30:]), atol=1e-5)
    with pytest.raises(SfvgenError, match=r"frames must be uint8 .* \(2, 0, 64, 64, 3\)"):
        model.encode(frames[:, :0])
