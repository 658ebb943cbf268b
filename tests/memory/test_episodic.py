import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.memory import MEMORY_VARIANTS, EpisodicMemory, MemoryConfig, memory_variant
from sfvgen_planner.world_model import VideoWorldModel, tiny_world_model
from sfvgen_planner.world_model.gradient_checkpointing import enable_gradient_checkpointing
from tests.small_memories import FRAMES, of_both_kinds, video, write


@of_both_kinds
def test_fresh_memory_changes_nothing(model):
    before = video(model)
    EpisodicMemory(model)
    assert torch.allclose(video(model), before, atol=1e-5)


@of_both_kinds
def test_what_learnt_before_a_memory_learns_after_it(model):
    model.unet.requires_grad_(True)
    next(model.unet.parameters()).requires_grad_(False)
    before = {name: value.requires_grad for name, value in model.unet.named_parameters()}
    memory = EpisodicMemory(model)
    assert not any(value.requires_grad for value in model.unet.parameters())
    memory.detach()
    assert {name: value.requires_grad for name, value in model.unet.named_parameters()} == before


@of_both_kinds
def test_writing_learns_the_chunk_and_only_the_fast_weights(model):
    slow = {name: value.clone() for name, value in model.unet.state_dict().items()}
    before = video(model)
    memory = EpisodicMemory(model, MemoryConfig(learning_rate=5e-3))
    writes = write(memory, times=3)
    assert writes[0].loss_after < writes[0].loss_before
    assert writes[-1].loss_after < 0.97 * writes[0].loss_before
    assert (video(model) - before).abs().max() > 1e-2
    memory.detach()
    for name, value in model.unet.state_dict().items():
        assert torch.equal(value, slow[name])
    assert torch.allclose(video(model), before, atol=1e-5)


@of_both_kinds
def test_whole_sequence_is_noised_without_text_action_or_clean_frame(model, monkeypatch):
    """Eq. 3: what the denoiser is given while the memory is written."""
    calls = []
    denoise = model.denoise

    def spy(*arguments):
        calls.append(arguments)
        return denoise(*arguments)

    monkeypatch.setattr(model, "denoise", spy)
    write(EpisodicMemory(model, MemoryConfig(num_steps=1)))
    assert len(calls) == 3
    clean = model.encode(FRAMES[None])
    empty = model.encode_instructions([""])
    for window, timesteps, _, text_states, _, actions_given, context_given in calls:
        sigma = (timesteps / 1000)[:, None, None, None, None]
        noise = (window - (1 - sigma) * clean) / sigma
        assert noise[:, :, :4].std().item() == pytest.approx(1, abs=0.15)
        assert torch.allclose(text_states, empty.expand(len(timesteps), -1, -1), atol=1e-6)
        assert not actions_given.any()
        assert not context_given.any()


@of_both_kinds
def test_only_temporal_layers_are_adapted(model):
    memory = EpisodicMemory(model, MemoryConfig(rank=2))
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


def test_reset_forgets_everything_and_repeats_exactly(model, config):
    memory = EpisodicMemory(model, config)
    start = memory.state()
    write(memory)
    learnt = memory.state()
    memory.reset()
    assert all(torch.equal(memory.state()[name], value) for name, value in start.items())
    write(memory)
    assert all(torch.allclose(memory.state()[name], value) for name, value in learnt.items())


def test_switched_off_it_is_not_seen_but_kept(model, config):
    before = video(model)
    memory = EpisodicMemory(model, config)
    write(memory)
    remembering = video(model)
    memory.enabled = False
    assert torch.allclose(video(model), before, atol=1e-5)
    memory.enabled = True
    assert torch.equal(video(model), remembering)


def test_latents_and_pixels_write_the_same(model, config):
    latents = model.encode(FRAMES[None])[0]
    memory = EpisodicMemory(model, config)
    write(memory)
    pixels = memory.state()
    memory.reset()
    memory.write(latents[:, :4], latents[:, 4:])
    assert all(torch.allclose(memory.state()[name], value) for name, value in pixels.items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": 1.5}, "rank of a memory must be a whole number, got 1.5"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate of a memory must be positive and finite"),
        ({"learning_rate": "1e-4"}, "learning_rate of a memory must be a number, got '1e-4'"),
        ({"num_steps": 0}, "num_steps"),
        ({"rule": "sgd"}, "rule"),
        ({"min_noise": 1.0}, "min_noise"),
        ({"num_time_codes": -1}, "num_time_codes"),
        ({"num_time_slots": 1.5}, "num_time_slots of a memory must be a whole number"),
        ({"max_past_frames": 0}, "max_past_frames"),
        ({"target_modules": "nothing_like_this"}, "target_modules"),
    ],
)
def test_bad_settings_are_told(model, settings, words):
    with pytest.raises(SfvgenError, match=words):
        EpisodicMemory(model, MemoryConfig(**settings))
    EpisodicMemory(model)


def test_variants_have_names():
    assert memory_variant("none") is None
    assert memory_variant("paper") == MemoryConfig()
    with pytest.raises(SfvgenError, match="no_local_rule"):
        memory_variant("nothing")


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


@of_both_kinds
def test_gradient_checkpointing_leaves_a_write_as_it_is(new_model, config):
    states = []
    for checkpointing in (False, True):
        model = new_model()
        if checkpointing:
            enable_gradient_checkpointing(model.unet)
        memory = EpisodicMemory(model, replace(config, instruction_code=config.is_coded))
        write(memory)
        states.append(memory.state())
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-5)


@of_both_kinds
def test_a_model_of_half_precision_remembers_too(new_model, config):
    """Within the precision of a bfloat16 as the same model and memory in single precision."""
    videos = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = new_model().to(dtype)
        before = video(model)
        memory = EpisodicMemory(model, replace(config, instruction_code=config.is_coded))
        write(memory)
        videos[dtype] = video(model)
        learnt = (videos[dtype] - before).norm()
    difference = (videos[torch.float32] - videos[torch.bfloat16]).norm()
    assert 0 < difference < 0.5 * learnt


def test_a_denoiser_of_half_precision_alone_remembers_as_the_whole_model(new_model, config):
    losses = []
    for part in ("all", "unet"):
        model = new_model()
        for name in ("unet", "text_encoder", "vae") if part == "all" else (part,):
            nn.Module.to(getattr(model, name), torch.bfloat16)
        memory = EpisodicMemory(model, replace(config, instruction_code=config.is_coded))
        losses += [write.loss_after for write in write(memory)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_unit_steps_change_only_b_by_the_same_size(model):
    """Normalised: whatever the chunk, B moves by eta in root mean square."""
    memory = EpisodicMemory(model, MEMORY_VARIANTS["ours"])
    write(memory)
    state = memory.state()
    assert {name.split(".")[-2] for name in state if ".lora_" in name} == {"lora_B"}
    for name, value in state.items():
        if ".lora_" in name:
            assert value.square().mean().sqrt().item() == pytest.approx(0.01, rel=1e-3)


def test_a_conditioned_memory_learns_from_past_instruction_and_actions(model, monkeypatch):
    calls = []
    denoise = model.denoise

    def spy(*arguments):
        calls.append(arguments)
        return denoise(*arguments)

    monkeypatch.setattr(model, "denoise", spy)
    memory = EpisodicMemory(model, MEMORY_VARIANTS["original_temp_lora"])
    actions = torch.full((8, 4), 0.5, dtype=torch.bfloat16, requires_grad=True)
    memory.write(FRAMES[:4], FRAMES[4:], "return the red cube", actions, measure=False)
    clean = model.encode(FRAMES[None])
    told = model.encode_instructions(["return the red cube"])
    for window, _, _, text_states, actions, actions_given, context_given in calls:
        assert torch.allclose(window[:, :, :4], clean[:, :, :4].expand_as(window[:, :, :4]))
        assert torch.allclose(text_states, told.expand_as(text_states), atol=1e-6)
        assert (actions == 0.5).all()
        assert actions_given.all()
        assert context_given.all()


def test_without_the_local_rule_old_chunks_are_learnt_again(model, new_model, monkeypatch):
    config = replace(MEMORY_VARIANTS["no_local_rule"], num_steps=12, num_noise_draws=1)
    memory = EpisodicMemory(model, config)
    chunks = [torch.full((4, 12, 4, 4), value) for value in (1.0, 2.0)]
    memory.write(chunks[0][:, :4], chunks[0][:, 4:], measure=False)
    seen = []
    learn = memory._learner.learn
    monkeypatch.setattr(
        memory._learner,
        "learn",
        lambda f, c, batches, probe: seen.extend(batches) or learn(f, c, batches, probe),
    )
    memory.write(chunks[1][:, :4], chunks[1][:, 4:], measure=False)
    assert {batch.latents.unique().item() for batch in seen} == {1.0, 2.0}
    # What was written goes along with the state.
    other = EpisodicMemory(new_model(), config)
    other.load(memory.state())
    for one in (memory, other):
        one.write(chunks[0][:, :4], chunks[0][:, 4:], measure=False)
    assert all(torch.equal(other.state()[name], value) for name, value in memory.state().items())


def test_a_chunk_that_is_refused_is_not_among_those_learnt_again(model, monkeypatch):
    memory = EpisodicMemory(model, MEMORY_VARIANTS["no_local_rule"])
    write(memory)
    before = memory.state()
    with pytest.raises(SfvgenError, match="as many frames, got 5 and 8"):
        memory.write(FRAMES[:4], FRAMES[4:9])
    with monkeypatch.context() as patch:
        patch.setattr(memory._learner, "learn", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(memory)
    assert all(torch.equal(memory.state()[name], value) for name, value in before.items())
    write(memory)
    assert len(memory.state()["history"]) == 2


def test_an_episodes_first_frame_stands_still_before_it(model):
    latents = model.encode(FRAMES[None])[0]
    memory = EpisodicMemory(model, MemoryConfig(learning_rate=1e-2))
    memory.write(latents[:, :1], latents[:, 4:])
    one = memory.state()
    memory.reset()
    memory.write(latents[:, :1].expand(-1, 4, -1, -1), latents[:, 4:])
    assert all(torch.equal(memory.state()[name], value) for name, value in one.items())


def test_a_memory_that_is_detached_twice_leaves_the_next_one_in_place(model, tmp_path):
    slow = video(model)
    old = EpisodicMemory(model)
    old.detach()
    new = EpisodicMemory(model, MemoryConfig(learning_rate=5e-3), num_memories=2)
    new.write_batch(np.stack([FRAMES[:4]] * 2), np.stack([FRAMES[4:]] * 2))
    with new.showing([1]):
        remembering = video(model)
    old.detach()
    for change in (
        old.reset,
        partial(old.load, new.state()),
        partial(setattr, old, "enabled", True),
        old.showing([0]).__enter__,
        old.state,
        partial(old.save_pretrained, tmp_path / "memory"),
    ):
        with pytest.raises(SfvgenError, match="detached"):
            change()
    assert not (tmp_path / "memory").exists()
    assert model.num_memories == 2
    with new.showing([1]):
        assert torch.equal(video(model), remembering)
    assert not torch.equal(remembering, slow)
    new.detach()


def test_lists_of_frames_are_told_to_become_arrays(model):
    memory = EpisodicMemory(model)
    for write_lists in (
        partial(memory.write, FRAMES[:4], list(FRAMES[4:])),
        partial(memory.write_batch, FRAMES[None, :4], [FRAMES[4:]]),
    ):
        with pytest.raises(SfvgenError, match="a NumPy array or a tensor, got a list"):
            write_lists()
    assert memory.num_writes == [0]


@pytest.mark.parametrize("name", ["paper", "no_local_rule"])
def test_what_is_not_finite_is_not_learnt(model, name):
    memory = EpisodicMemory(model, memory_variant(name))
    write(memory)
    before = memory.state()
    past, chunk = torch.zeros(4, 4, 4, 4), torch.zeros(4, 8, 4, 4)
    past[0, 0, 0, 0] = torch.nan
    for measure in (True, False):
        with pytest.raises(SfvgenError, match="not finite"):
            memory.write(past, chunk, measure=measure)
    assert all(torch.equal(value, before[name]) for name, value in memory.state().items())


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_write_that_diverges_leaves_what_was_held(model, config, monkeypatch, value):
    memory = EpisodicMemory(model, config)
    write(memory)
    before, remembering = memory.state(), video(model)
    learn = memory._learner.learn

    def diverging(*arguments):
        learnt, losses = learn(*arguments)
        list(learnt.values())[-1].view(-1)[-1] = value
        return learnt, losses

    with monkeypatch.context() as patch:
        patch.setattr(memory._learner, "learn", diverging)
        with pytest.raises(SfvgenError, match="lower the memory's learning_rate"):
            write(memory)
    assert all(torch.equal(value, before[name]) for name, value in memory.state().items())
    assert torch.equal(video(model), remembering)


@pytest.mark.parametrize("shape", [(3, 8, 4, 4), (4, 8, 2, 2), (4, 0, 4, 4)])
def test_latents_of_another_model_are_refused(model, shape):
    memory = EpisodicMemory(model)
    with pytest.raises(SfvgenError, match=r"\(batch, 4, frames, 4, 4\)"):
        memory.write(torch.zeros(4, 4, 4, 4), torch.zeros(shape))


def test_a_state_that_is_not_whole_changes_nothing(model):
    memory = EpisodicMemory(model)
    write(memory)
    state = memory.state()
    name = next(name for name, value in state.items() if value.is_floating_point())
    broken = state | {name: torch.full_like(state[name], torch.nan)}
    del state["num_writes"]
    memory.reset()
    before = memory.state()
    with pytest.raises(SfvgenError, match="lacks num_writes"):
        memory.load(state)
    with pytest.raises(SfvgenError, match="not finite"):
        memory.load(broken)
    assert all(torch.equal(value, before[name]) for name, value in memory.state().items())


def test_a_model_is_not_saved_with_a_memory_in_it(model, tmp_path):
    memory = EpisodicMemory(model)
    with pytest.raises(SfvgenError, match=r"detach\(\) it before saving"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    memory.detach()
    model.save_pretrained(tmp_path / "model")
    again = VideoWorldModel.from_pretrained(tmp_path / "model")
    assert torch.allclose(video(again), video(model), atol=1e-2)


def test_what_happens_to_a_hidden_memory_is_seen_afterwards_and_only_then():
    model = tiny_world_model()
    config = replace(MEMORY_VARIANTS["ours"], rank=2, num_noise_draws=1, learning_rate=0.1)
    memory = EpisodicMemory(model, config, num_memories=2)
    past, chunk = torch.randn(2, 4, 4, 4, 4), torch.randn(2, 4, 8, 4, 4)

    def imagine(count=2):
        generator = torch.Generator().manual_seed(0)
        return model(past[:count], generator=generator, output_type="latent").latents

    slow = imagine()
    with model.without_memory():
        memory.write_batch(past, chunk)
        assert torch.equal(imagine(), slow)
        with memory.showing([1]), model.without_memory():
            assert torch.equal(imagine(), slow)
        assert torch.allclose(imagine(1), slow[:1], atol=1e-3)
    learnt = imagine()
    assert not torch.allclose(learnt, slow, atol=1e-3)
    with pytest.raises(SfvgenError, match="by their numbers"), memory.showing([0.0]):
        pass
    assert torch.equal(imagine(), learnt)
    with model.without_memory():
        memory.reset()
    assert torch.equal(imagine(), slow)
