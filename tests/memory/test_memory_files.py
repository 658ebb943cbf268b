import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.memory import MEMORY_VARIANTS, EpisodicMemory, MemoryConfig
from sfvgen_planner.memory.adapter import peft_config
from sfvgen_planner.memory.fingerprint import slow_fingerprint
from sfvgen_planner.world_model import load_world_model
from sfvgen_planner.world_model.kernels import use_trainable_attention
from tests.small_memories import of_both_kinds, video, write


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


def test_a_save_that_is_killed_between_its_files_leaves_a_memory_that_loads(
    model, new_model, config, tmp_path, monkeypatch
):
    memory = EpisodicMemory(model, config)
    write(memory)
    memory.save_pretrained(tmp_path)
    write(memory)
    with monkeypatch.context() as patch:
        patch.setattr("sfvgen_planner.memory.adapter_files.write_json", None)
        with pytest.raises(TypeError):
            memory.save_pretrained(tmp_path)
    fresh = EpisodicMemory(new_model(), config)
    fresh.load_pretrained(tmp_path)
    assert all(torch.equal(fresh.state()[name], value) for name, value in memory.state().items())
    # Older files tell no number of writes.
    weights = tmp_path / "adapter_model.safetensors"
    save_file({name: value.clone() for name, value in load_file(weights).items()}, weights)
    fresh.load_pretrained(tmp_path)
    assert fresh.num_writes == [1]


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


def test_a_memory_that_cannot_be_made_leaves_the_model_as_it_was(model, new_model, tmp_path):
    before = video(model)
    (tmp_path / "model_index.json").write_text("{}")
    EpisodicMemory(new_model(), MemoryConfig(rank=2)).save_pretrained(tmp_path / "memory")
    settings = tmp_path / "memory" / "memory.json"
    settings.write_text(settings.read_text().replace('"rank": 2', '"rank": 3'))
    with pytest.raises(SfvgenError, match="another model"):
        EpisodicMemory.from_pretrained(model, tmp_path)
    with pytest.raises((MemoryError, RuntimeError)):
        EpisodicMemory(model, num_memories=10**15)
    assert torch.equal(video(model), before)
    memory = EpisodicMemory(model)
    write(memory)
    assert memory.num_writes == [1]


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
def test_a_state_is_refused_by_other_slow_weights(model, new_model, config):
    memory = EpisodicMemory(model, config)
    write(memory)
    other = EpisodicMemory(new_model(seed=1), config)
    fresh = other.state()
    with pytest.raises(SfvgenError, match="other slow weights"):
        other.load(memory.state())
    assert other.num_writes == [0]
    assert all(torch.equal(other.state()[name], value) for name, value in fresh.items())
    # What memories share is drawn from the seed; those of the paper share nothing.
    other_seed = EpisodicMemory(new_model(), config, seed=1)
    if config.rule == "normalised":
        with pytest.raises(SfvgenError, match="other slow weights or codes"):
            other_seed.load(memory.state())
    else:
        other_seed.load(memory.state())
    # In another precision it is the same model.
    half = EpisodicMemory(new_model().to(torch.bfloat16), config)
    half.load(memory.state())
    assert half.num_writes == [1]


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
