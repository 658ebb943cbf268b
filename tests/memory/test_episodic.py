from functools import partial

import numpy as np
import pytest
import torch
from peft import PeftModel

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.memory import EpisodicMemory
from sfvgen_planner.world_model import tiny_world_model

FRAMES = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(params=["unet", "transformer"])
def new_model(request):
    return partial(tiny_world_model, denoiser=request.param)


@pytest.fixture
def model(new_model):
    return new_model()


def video(model):
    generator = torch.Generator().manual_seed(0)
    past = FRAMES[None, :4]
    return model(past, "return the red cube", num_frames=3, generator=generator).latents


def write(memory, times=1):
    return [memory.write(FRAMES[:4], FRAMES[4:]) for _ in range(times)]


def test_fresh_memory_changes_nothing(model):
    before = video(model)
    EpisodicMemory(model)
    assert torch.allclose(video(model), before, atol=1e-5)


def test_writing_learns_the_chunk_and_only_the_fast_weights(model):
    slow = {name: value.clone() for name, value in model.unet.state_dict().items()}
    before = video(model)
    memory = EpisodicMemory(model, learning_rate=3e-3)
    writes = write(memory, times=5)
    assert writes[0].loss_after < writes[0].loss_before
    assert writes[-1].loss_after < 0.97 * writes[0].loss_before
    assert (video(model) - before).abs().max() > 1e-2
    memory.detach()
    for name, value in model.unet.state_dict().items():
        assert torch.equal(value, slow[name])
    assert torch.allclose(video(model), before, atol=1e-5)


def test_whole_sequence_is_noised_without_text_action_or_clean_frame(model, monkeypatch):
    """Eq. 3: what the denoiser is given while the memory is written."""
    memory = EpisodicMemory(model, num_steps=1)
    calls = []
    denoise = model.denoise

    def spy(window, timesteps, num_past, text_states, **kwargs):
        calls.append((window, timesteps, text_states, kwargs))
        return denoise(window, timesteps, num_past, text_states, **kwargs)

    monkeypatch.setattr(model, "denoise", spy)
    write(memory)
    clean = model.encode(FRAMES[None])
    empty = model.encode_instructions([""])
    for window, timesteps, text_states, kwargs in calls:
        sigma = (timesteps / 1000)[:, None, None, None, None]
        noise = (window - (1 - sigma) * clean) / sigma
        assert noise[:, :, :4].std().item() == pytest.approx(1, abs=0.15)
        assert torch.equal(text_states, empty.expand(len(timesteps), -1, -1))
        assert "actions" not in kwargs
        assert not kwargs["context_given"].any()


def test_only_temporal_layers_are_adapted(model):
    memory = EpisodicMemory(model, rank=2)
    adapted = {name.split(".lora_")[0] for name in memory.state() if ".lora_" in name}
    temporal = {
        "UNet3DConditionModel": ("temp_attentions", "temp_convs", "transformer_in"),
        "LatteTransformer3DModel": (
            "temporal_transformer_blocks.0.attn1",
            "temporal_transformer_blocks.0.ff",
            "temporal_transformer_blocks.1.attn1",
            "temporal_transformer_blocks.1.ff",
        ),
    }[type(model.unet).__name__]
    for name in adapted:
        assert any(part in name for part in temporal)
    for part in temporal:
        assert any(part in name for name in adapted)


def test_reset_forgets_everything_and_repeats_exactly(model):
    memory = EpisodicMemory(model, learning_rate=1e-2)
    start = memory.state()
    write(memory)
    learnt = memory.state()
    memory.reset()
    assert all(torch.equal(memory.state()[name], value) for name, value in start.items())
    write(memory)
    assert all(torch.allclose(memory.state()[name], value) for name, value in learnt.items())


def test_switched_off_it_is_not_seen_but_kept(model):
    before = video(model)
    memory = EpisodicMemory(model, learning_rate=1e-2)
    write(memory)
    remembering = video(model)
    memory.enabled = False
    assert torch.allclose(video(model), before, atol=1e-5)
    memory.enabled = True
    assert torch.equal(video(model), remembering)


def test_latents_and_pixels_write_the_same(model):
    latents = model.encode(FRAMES[None])[0]
    memory = EpisodicMemory(model, learning_rate=1e-2)
    write(memory)
    pixels = memory.state()
    memory.reset()
    memory.write(latents[:, :4], latents[:, 4:])
    assert all(torch.allclose(memory.state()[name], value) for name, value in pixels.items())


def test_saved_memory_is_a_peft_adapter_and_gives_the_same_video(model, new_model, tmp_path):
    memory = EpisodicMemory(model, learning_rate=1e-2)
    write(memory)
    remembering = video(model)
    memory.save_pretrained(tmp_path)

    with_peft = new_model()
    PeftModel.from_pretrained(with_peft.unet, str(tmp_path))
    assert torch.allclose(video(with_peft), remembering, atol=1e-5)

    fresh_model = new_model()
    fresh = EpisodicMemory(fresh_model, learning_rate=1e-2)
    fresh.load_pretrained(tmp_path)
    assert torch.equal(video(fresh_model), remembering)
    # Going on from a loaded memory equals going on without the interruption.
    write(memory)
    write(fresh)
    assert all(torch.equal(fresh.state()[name], value) for name, value in memory.state().items())


def test_states_of_another_rank_or_broken_folders_are_refused(model, new_model, tmp_path):
    memory = EpisodicMemory(model, rank=4)
    other = EpisodicMemory(new_model(), rank=2)
    with pytest.raises(SfvgenError, match="another model, rank"):
        memory.load(other.state())
    with pytest.raises(SfvgenError, match="no readable memory"):
        memory.load_pretrained(tmp_path)
    memory.save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(SfvgenError, match="no readable memory"):
        memory.load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "rank"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"num_steps": 0}, "num_steps"),
        ({"target_modules": "nothing_like_this"}, "target_modules"),
    ],
)
def test_bad_settings_are_told(model, settings, words):
    with pytest.raises(SfvgenError, match=words):
        EpisodicMemory(model, **settings)
    EpisodicMemory(model)


def test_a_model_has_one_memory_at_a_time(model):
    memory = EpisodicMemory(model)
    with pytest.raises(SfvgenError, match="already"):
        EpisodicMemory(model)
    memory.detach()
    EpisodicMemory(model)


def test_frames_of_the_wrong_size_are_told_and_write_nothing(model):
    memory = EpisodicMemory(model)
    before = memory.state()
    with pytest.raises(SfvgenError, match="64, 64, 3"):
        memory.write(FRAMES[:4, :32], FRAMES[4:, :32])
    assert all(torch.equal(memory.state()[name], value) for name, value in before.items())
