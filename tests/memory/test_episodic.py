import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.memory import MEMORY_VARIANTS, EpisodicMemory, MemoryConfig, memory_variant
from sfvgen_planner.memory.adapter import peft_config
from sfvgen_planner.memory.fingerprint import slow_fingerprint
from sfvgen_planner.world_model import load_world_model, tiny_world_model
from sfvgen_planner.world_model.gradient_checkpointing import enable_gradient_checkpointing
from sfvgen_planner.world_model.kernels import use_trainable_attention

FRAMES = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def new_model(request):
    """Makes models alike, of the quicker kind where a test does not ask for both."""
    return partial(tiny_world_model, denoiser=getattr(request, "param", "transformer"))


of_both_kinds = pytest.mark.parametrize("new_model", ["unet", "transformer"], indirect=True)


@pytest.fixture
def model(new_model):
    return new_model()


@pytest.fixture(params=["paper", "ours"])
def config(request):
    """Fast enough to leave a trace in one write."""
    if request.param == "paper":
        return MemoryConfig(learning_rate=1e-2, num_steps=2)
    return replace(MEMORY_VARIANTS["ours"], num_time_codes=3, learning_rate=0.1)


def video(model):
    generator = torch.Generator().manual_seed(0)
    past = FRAMES[None, :4]
    return model(past, "return the red cube", num_frames=3, generator=generator).latents


def write(memory, times=1):
    return [memory.write(FRAMES[:4], FRAMES[4:]) for _ in range(times)]


@of_both_kinds
def test_fresh_memory_changes_nothing(model):
    before = video(model)
    EpisodicMemory(model)
    assert torch.allclose(video(model), before, atol=1e-5)


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


@of_both_kinds
def test_saved_memory_is_a_peft_adapter_and_gives_the_same_video(
    model, new_model, config, tmp_path
):
    memory = EpisodicMemory(model, config)
    write(memory)
    remembering = video(model)
    memory.save_pretrained(tmp_path)

    with_peft = new_model()
    adapted = PeftModel.from_pretrained(
        with_peft.unet, str(tmp_path), config=peft_config(with_peft, config)
    )
    read = get_peft_model_state_dict(adapted)
    assert all(torch.equal(read[k], v) for k, v in memory.state().items() if k in read)
    assert read.keys() == load_file(tmp_path / "adapter_model.safetensors").keys()

    fresh_model = new_model()
    fresh = EpisodicMemory(fresh_model, config)
    fresh.load_pretrained(tmp_path)
    assert torch.equal(video(fresh_model), remembering)
    # Going on from a loaded memory equals going on without the interruption.
    write(memory)
    write(fresh)
    assert all(torch.equal(fresh.state()[name], value) for name, value in memory.state().items())


@of_both_kinds
def test_peft_alone_reads_the_papers_memory_and_imagines_the_same(model, new_model, tmp_path):
    memory = EpisodicMemory(model, MemoryConfig(learning_rate=1e-2))
    write(memory)
    memory.save_pretrained(tmp_path)
    with_peft = new_model()
    PeftModel.from_pretrained(with_peft.unet, str(tmp_path))
    assert torch.allclose(video(with_peft), video(model), atol=1e-5)


def test_states_of_another_rank_or_broken_folders_are_refused(model, new_model, tmp_path):
    memory = EpisodicMemory(model, MemoryConfig(rank=4))
    other = EpisodicMemory(new_model(), MemoryConfig(rank=2))
    with pytest.raises(SfvgenError, match="another model, rank"):
        memory.load(other.state())
    with pytest.raises(SfvgenError, match="no readable memory"):
        memory.load_pretrained(tmp_path)
    memory.save_pretrained(tmp_path)
    with pytest.raises(SfvgenError, match="one episode's memory, not a model"):
        EpisodicMemory.from_pretrained(new_model(), tmp_path)
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
        ({"rule": "sgd"}, "rule"),
        ({"min_noise": 1.0}, "min_noise"),
        ({"num_time_codes": -1}, "num_time_codes"),
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


def test_reset_of_a_trained_start_gives_the_slow_model_exactly(new_model, config, tmp_path):
    """Even where the loop has moved the start of B away from zero."""
    EpisodicMemory(new_model(), config).save_pretrained(tmp_path / "memory")
    weights = tmp_path / "memory" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({k: v + 0.1 if ".lora_B." in k else v for k, v in tensors.items()}, weights)
    (tmp_path / "model_index.json").write_text("{}")
    model = new_model()
    use_trainable_attention(model.unet)
    before = video(model)
    memory = EpisodicMemory.from_pretrained(model, tmp_path)
    assert memory.config == config
    assert torch.equal(video(model), before)
    write(memory)
    assert not torch.allclose(video(model), before, atol=1e-3)
    memory.reset([0])
    assert torch.equal(video(model), before)
    state = memory.state()
    assert all((v == 0.1).all() for k, v in state.items() if ".lora_B." in k)


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


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
def test_a_saved_memory_is_read_in_another_precision(new_model, config, tmp_path, saved):
    other = torch.bfloat16 if saved == torch.float32 else torch.float32
    memory = EpisodicMemory(new_model().to(saved), config)
    write(memory)
    memory.save_pretrained(tmp_path)
    read = EpisodicMemory(new_model().to(other), config)
    read.load_pretrained(tmp_path)
    assert all(torch.equal(read.state()[name], v) for name, v in memory.state().items())


def test_a_checkpoint_without_a_loop_gets_the_papers_memory(model, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    assert EpisodicMemory.from_pretrained(model, tmp_path).config == MemoryConfig()


def test_a_trained_memory_writes_with_as_many_noise_draws_as_asked(new_model, tmp_path):
    """A write of one draw is that of the same adapters with settings that say so."""
    (tmp_path / "model_index.json").write_text("{}")
    config = replace(MEMORY_VARIANTS["ours"], num_noise_draws=3)
    EpisodicMemory(new_model(), config, seed=5).save_pretrained(tmp_path / "memory")
    memory = EpisodicMemory.from_pretrained(new_model(), tmp_path, num_noise_draws=1)
    same = EpisodicMemory(new_model(), replace(config, num_noise_draws=1), seed=5)
    same.seed = memory.seed
    trained = EpisodicMemory.from_pretrained(new_model(), tmp_path)
    for one in (memory, same, trained):
        write(one)
    (state, equal, other) = (one.state() for one in (memory, same, trained))
    assert all(torch.equal(value, equal[name]) for name, value in state.items())
    assert any(not torch.equal(value, other[name]) for name, value in state.items())


def test_a_checkpoints_memory_of_another_model_is_refused(new_model, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    EpisodicMemory(new_model(), MemoryConfig(rank=2)).save_pretrained(tmp_path / "memory")
    settings = tmp_path / "memory" / "memory.json"
    settings.write_text(settings.read_text().replace('"rank": 2', '"rank": 3'))
    with pytest.raises(SfvgenError, match="another model"):
        EpisodicMemory.from_pretrained(new_model(), tmp_path)
    settings.write_text("{}")
    with pytest.raises(SfvgenError, match="no readable memory"):
        EpisodicMemory.from_pretrained(new_model(), tmp_path)


def test_trained_adapters_are_refused_by_other_slow_weights(new_model, config, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    EpisodicMemory(new_model(), config).save_pretrained(tmp_path / "memory")
    other = new_model(seed=1)
    with pytest.raises(SfvgenError, match="other slow weights"):
        EpisodicMemory.from_pretrained(other, tmp_path)
    memory = EpisodicMemory(other, config)
    with pytest.raises(SfvgenError, match="other slow weights"):
        memory.load_pretrained(tmp_path / "memory")
    memory.detach()
    # A folder from before slow weights were recorded tells nothing of them.
    settings = tmp_path / "memory" / "memory.json"
    told = json.loads(settings.read_text())
    del told["slow_weights"]
    settings.write_text(json.dumps(told))
    EpisodicMemory.from_pretrained(other, tmp_path)


@of_both_kinds
def test_slow_weights_are_known_in_any_precision_and_under_a_memory(new_model, config):
    half = new_model().to(torch.float16)
    known = slow_fingerprint(half.unet)
    for dtype in (torch.float32, torch.bfloat16):
        assert slow_fingerprint(new_model().to(torch.float16).to(dtype).unet) == known
    memory = EpisodicMemory(half, config)
    assert slow_fingerprint(half.unet) == known
    memory.detach()
    next(half.unet.parameters()).data.view(-1)[0] += 1
    assert slow_fingerprint(half.unet) != known


def test_the_shipped_memory_belongs_to_the_shipped_model():
    """Which is also where it is looked for, if nothing else is said."""
    model = load_world_model("tabletop_memory")
    assert EpisodicMemory.from_pretrained(model).config.rule == "normalised"
    with pytest.raises(SfvgenError, match="other slow weights"):
        EpisodicMemory.from_pretrained(load_world_model("tabletop"), "tabletop_memory")


def test_a_model_that_was_loaded_from_nowhere_asks_for_the_checkpoint(model):
    with pytest.raises(SfvgenError, match="loaded from no folder"):
        EpisodicMemory.from_pretrained(model)


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
    actions = np.full((8, 4), 0.5, np.float32)
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
        memory._learner, "learn", lambda f, c, batches: seen.extend(batches) or learn(f, c, batches)
    )
    memory.write(chunks[1][:, :4], chunks[1][:, 4:], measure=False)
    assert {batch.latents.unique().item() for batch in seen} == {1.0, 2.0}
    # What was written goes along with the state.
    other = EpisodicMemory(new_model(), config)
    other.load(memory.state())
    for one in (memory, other):
        one.write(chunks[0][:, :4], chunks[0][:, 4:], measure=False)
    assert all(torch.equal(other.state()[name], value) for name, value in memory.state().items())


def test_an_episodes_first_frame_stands_still_before_it(model):
    latents = model.encode(FRAMES[None])[0]
    memory = EpisodicMemory(model, MemoryConfig(learning_rate=1e-2))
    memory.write(latents[:, :1], latents[:, 4:])
    one = memory.state()
    memory.reset()
    memory.write(latents[:, :1].expand(-1, 4, -1, -1), latents[:, 4:])
    assert all(torch.equal(memory.state()[name], value) for name, value in one.items())


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
