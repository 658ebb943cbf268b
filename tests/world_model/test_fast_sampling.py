"""Compiled sampling is told apart from eager sampling by its speed only.

On a CPU the functions are traced and run by PyTorch itself, which takes seconds, not minutes
(least for the transformer); tests of CUDA graphs need a GPU.
"""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from sfvgen_planner.memory import EpisodicMemory, MemoryConfig
from sfvgen_planner.world_model import VideoWorldModel, tiny_world_model
from sfvgen_planner.world_model.cuda_graphs import module_state
from sfvgen_planner.world_model.kernels import use_channels_last

TEXT = "return the red cube"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPU = {"backend": "eager"}


@pytest.fixture
def past():
    return np.random.default_rng(0).integers(0, 256, (3, 4, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def actions():
    return np.random.default_rng(1).uniform(-1, 1, (3, 8, 4)).astype(np.float32)


def imagine(model, past, actions=None, text=None, **arguments):
    arguments = {"num_inference_steps": 2, "output_type": "latent", **arguments}
    generator = torch.Generator().manual_seed(0)
    return model(past, text, actions, generator=generator, **arguments)


def assert_same(output, wanted, atol=1e-4):
    assert torch.allclose(output.latents.cpu(), wanted.latents.cpu(), atol=atol)
    if wanted.frames is not None:
        assert np.abs(output.frames.astype(int) - wanted.frames).max() <= 1


def test_imagines_what_the_eager_model_imagines(past, actions):
    model = tiny_world_model(denoiser="transformer")
    calls = [
        {"actions": actions, "common_noise": True, "output_type": "np"},
        {"actions": actions, "text": [TEXT, None, TEXT], "guidance_scale": 2.0},
    ]
    wanted = [imagine(model, past, **call) for call in calls]
    model.compile(**CPU)
    for call, output in zip(calls, wanted, strict=True):
        assert_same(imagine(model, past, **call), output)


def test_graphs_without_compiled_code_imagine_the_same(past, actions):
    model = tiny_world_model(denoiser="transformer")
    wanted = imagine(model, past, actions, output_type="np")
    model.compile(disable=True)
    assert model._fast.denoise == model.denoise
    assert_same(imagine(model, past, actions, output_type="np"), wanted)


def test_few_sizes_are_compiled(past, actions):
    """Batches are filled up to a power of two."""
    model = tiny_world_model(denoiser="transformer")
    sizes = []
    model.compile(backend=lambda graph, inputs: sizes.append(len(inputs)) or graph.forward)
    imagine(model, past, actions)
    compiled = len(sizes)
    more = np.repeat(past[:1], 4, axis=0), np.repeat(actions[:1], 4, axis=0)
    assert len(imagine(model, *more).latents) == 4
    assert len(sizes) == compiled


def test_the_order_of_weights_in_memory_changes_nothing_else(past, actions, tmp_path):
    model = tiny_world_model()
    wanted = imagine(model, past, actions, output_type="np")
    for module in (model.unet, model.vae):
        use_channels_last(module)
    temporal = model.unet.mid_block.temp_convs[0].conv1[2].weight
    assert temporal.is_contiguous(memory_format=torch.channels_last_3d)
    assert model.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert_same(imagine(model, past, actions, output_type="np"), wanted)
    model.save_pretrained(tmp_path)
    loaded = VideoWorldModel.from_pretrained(tmp_path)
    assert_same(imagine(loaded, past, actions, output_type="np"), wanted)


def test_a_memory_is_written_read_and_taken_off(past, actions):
    model, eager = (tiny_world_model(denoiser="transformer") for _ in range(2))
    plain = imagine(eager, past, actions)
    model.compile(**CPU)
    assert_same(imagine(model, past, actions), plain)
    memories = [
        EpisodicMemory(each, MemoryConfig(rank=4, learning_rate=1e-2)) for each in (model, eager)
    ]
    for memory in memories:
        memory.write(past[0], past[1])
    learnt = imagine(eager, past, actions)
    assert (learnt.latents - plain.latents).abs().max() > 0.01
    assert_same(imagine(model, past, actions), learnt, atol=2e-3)
    memories[0].enabled = False
    assert_same(imagine(model, past, actions), plain)
    memories[0].detach()
    assert_same(imagine(model, past, actions), plain)


def test_text_is_encoded_once_as_long_as_the_encoder_stays(past, monkeypatch):
    model = tiny_world_model(denoiser="transformer")
    model.compile(**CPU)
    encoded = []
    encode = model.encode_instructions
    monkeypatch.setattr(
        model, "encode_instructions", lambda texts: encoded.append(texts) or encode(texts)
    )
    first = imagine(model, past, text=TEXT, num_frames=1).latents
    imagine(model, past, text=[TEXT, None, "put it down"], num_frames=1)
    assert encoded == [["", TEXT], ["put it down"]]
    with torch.no_grad():
        for parameter in model.text_encoder.parameters():
            parameter.mul_(1.5)
    assert (imagine(model, past, text=TEXT, num_frames=1).latents - first).abs().max() > 1e-4
    assert len(encoded) == 3


def test_new_weights_and_switched_adapters_need_a_new_graph_and_writes_do_not(past):
    model = tiny_world_model(denoiser="transformer")
    states = [module_state(model.unet)]
    memory = EpisodicMemory(model, MemoryConfig(rank=4))
    states.append(module_state(model.unet))
    memory.write(past[0], past[1])
    states.append(module_state(model.unet))
    memory.write(past[0], past[1])
    assert module_state(model.unet) == states[2]
    memory.enabled = False
    assert module_state(model.unet) == states[1]
    memory.enabled = True
    assert module_state(model.unet) == states[2]
    memory.reset()
    assert module_state(model.unet) == states[1]
    memory.detach()
    assert module_state(model.unet) == states[0]
    model.unet.to(torch.bfloat16)
    states.append(module_state(model.unet))
    assert len(set(states)) == len(states)


@needs_gpu
@pytest.mark.parametrize("options", [CPU, {"disable": True}], ids=["compiled", "graphs"])
@pytest.mark.parametrize("denoiser", ["unet", "transformer"])
def test_graphs_imagine_what_the_eager_model_imagines(past, actions, denoiser, options):
    model = tiny_world_model(denoiser=denoiser).to("cuda")
    calls = [
        {"actions": actions, "output_type": "np"},
        {"actions": -actions},
        {"text": TEXT, "num_frames": 10, "guidance_scale": 2.0},
    ]
    wanted = [imagine(model, past, **call) for call in calls]
    model.compile(**options)
    # Each twice: captured, then replayed.
    for call, output in [*zip(calls, wanted, strict=True)] * 2:
        assert_same(imagine(model, past, **call), output, atol=1e-2)


@needs_gpu
def test_graphs_read_the_weights_of_the_moment(past, actions):
    model = tiny_world_model().to("cuda")
    plain = imagine(model, past, actions)
    model.compile(**CPU)
    assert_same(imagine(model, past, actions), plain, atol=1e-2)
    memory = EpisodicMemory(model, MemoryConfig(rank=4, learning_rate=1e-2))
    assert_same(imagine(model, past, actions), plain, atol=1e-2)
    memory.write(past[0], past[1])
    once = imagine(model, past, actions)
    assert (once.latents - plain.latents).abs().max() > 0.01
    graphs = len(model._fast._graphs)
    memory.write(past[1], past[2])
    learnt = imagine(model, past, actions)
    # The adapters were written in place, so the graph at hand has read them.
    assert (learnt.latents - once.latents).abs().max() > 0.01
    assert len(model._fast._graphs) == graphs
    memory.enabled = False
    assert_same(imagine(model, past, actions), plain, atol=1e-2)
    memory.enabled = True
    assert_same(imagine(model, past, actions), learnt, atol=1e-2)
    memory.detach()
    assert_same(imagine(model, past, actions), plain, atol=1e-2)


@needs_gpu
def test_a_scheduler_of_the_ddpm_family_is_captured(past):
    model = tiny_world_model().to("cuda")
    model.register_modules(scheduler=DDIMScheduler(num_train_timesteps=1000))
    wanted = imagine(model, past, num_frames=2, num_inference_steps=3)
    model.compile(**CPU)
    for _ in range(2):
        assert_same(imagine(model, past, num_frames=2, num_inference_steps=3), wanted, atol=1e-2)


@needs_gpu
def test_memory_is_measured_and_any_batch_fits(actions):
    """A batch whose activations are larger than the GPU."""
    model = tiny_world_model().to("cuda")
    latents = torch.zeros(1, 4, 4, 4, 4, device="cuda")
    model(latents, actions=actions[:1], output_type="latent")
    (per_sample,) = model._batches._memory_cap._bytes_per_sample.values()
    batch = 2 * torch.cuda.mem_get_info()[1] // per_sample
    if batch > 200_000:
        pytest.skip("this GPU holds more than is quick to compute")
    output = model(
        latents.expand(batch, -1, -1, -1, -1),
        actions=np.repeat(actions[:1], batch, axis=0),
        num_inference_steps=1,
        output_type="latent",
        common_noise=True,
    )
    assert len(output.latents) == batch
