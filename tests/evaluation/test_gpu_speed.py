"""The figures of a GPU: what they count, at tiny sizes on a CPU."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation import base_model_speed, training_speed
from sfvgen_planner.evaluation.measure import measure
from sfvgen_planner.evaluation.speed import FIGURES
from sfvgen_planner.evaluation.timing import SpeedConfig
from sfvgen_planner.world_model import tiny_world_model, trainer
from sfvgen_planner.world_model.conditioning import num_condition_planes
from sfvgen_planner.world_model.gradient_checkpointing import enable_gradient_checkpointing
from tests.tiny_base_model import tiny_base_model

CPU = SpeedConfig(device="cpu", num_timed_runs=2, training_batch_size=2)


@pytest.fixture
def base_model():
    return tiny_base_model()


def test_base_model_trains_its_unet_alone_and_samples(base_model):
    before = {name: p.clone() for name, p in base_model.unet.named_parameters()}
    text = [p.clone() for p in base_model.text_encoder.parameters()]
    assert len(base_model_speed.training_step_seconds(base_model, CPU)) == 2
    enable_gradient_checkpointing(base_model.unet)
    assert len(base_model_speed.training_step_seconds(base_model, CPU)) == 2
    assert any((p != before[name]).any() for name, p in base_model.unet.named_parameters())
    after = base_model.text_encoder.parameters()
    assert all(torch.equal(p, was) for p, was in zip(after, text, strict=True))
    assert len(base_model_speed.chunk_seconds(base_model, CPU)) == 2


def test_base_model_has_the_paper_s_size():
    """1.7 B parameters, counted without memory for them."""
    model = base_model_speed.build_base_model("meta")
    modules = (model.unet, model.text_encoder, model.vae)
    count = sum(p.numel() for module in modules for p in module.parameters())
    assert 1.6e9 < count < 1.9e9
    assert (model.config.image_size, model.latent_size) == (256, (4, 32, 32))
    assert model.unet.config.in_channels == 4 + num_condition_planes(4)
    with pytest.raises(SfvgenError, match="needs a GPU"):
        base_model_speed.build_base_model("cpu")


def test_a_training_step_costs_three_forward_passes():
    """Backward is two products for each of forward's, but none for the gradient of the input."""
    model = tiny_world_model()
    speed = training_speed.TrainingSpeed(model, CPU)
    states = torch.zeros(1, 16, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.denoise(torch.zeros(1, 4, 12, 4, 4), torch.zeros(1), 4, states)
        model.encode_instructions([""])
    forward = counter.get_total_flops()
    assert 2.8 * forward < speed.flops_per_sample < 3 * forward


def test_the_real_trainer_is_timed_and_profiled(monkeypatch):
    for module in (training_speed, trainer):
        monkeypatch.setattr(module, "LOG_EVERY", 2)
    speed = training_speed.TrainingSpeed(tiny_world_model(denoiser="transformer"), CPU)
    rates = speed.samples_per_second()
    assert len(rates) == CPU.num_timed_runs
    assert min(rates) > 0
    summary = speed.profile(0.25)
    assert summary.startswith("A training step takes 250.0 ms")
    assert "aten::mm" in summary


def test_kernels_are_told_apart():
    class Event:
        is_user_annotation = False

        def __init__(self, key, milliseconds, device="CUDA", annotation=False):
            self.key = key
            self.self_device_time_total = 1e3 * milliseconds
            self.device_type = type("Device", (), {"name": device})
            self.is_user_annotation = annotation

    shares = training_speed._shares(
        [
            Event("nvjet_hsh_128x256", 30),
            Event("sm90_xmma_gemm_bf16", 30),
            Event("sm90_xmma_fprop_implicit_gemm_bf16", 30),
            Event("triton_poi_fused_add_1", 15),
            Event("ProfilerStep*", 300, annotation=True),
            Event("aten::mm", 30, device="CPU"),
        ],
        step_seconds=0.1,
    )
    assert shares["matrix products"] == pytest.approx(0.2)
    assert shares["convolutions"] == pytest.approx(0.1)
    assert shares["fused elementwise, norms and softmax"] == pytest.approx(0.05)
    assert sum(shares.values()) == pytest.approx(0.35)


@pytest.mark.parametrize(
    ("gpu", "tflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
    ],
)
def test_peak_is_that_of_the_data_sheet(gpu, tflops):
    assert training_speed.peak_bf16_flops(gpu) == tflops * 1e12


def test_an_unknown_gpu_is_one_clear_sentence():
    with pytest.raises(SfvgenError, match=r"known for A100, .*, not for Voodoo 2"):
        training_speed.peak_bf16_flops("Voodoo 2")


def test_without_a_gpu_its_figures_are_skipped(tmp_path, tiny_checkpoint, caplog):
    names = ["training_mfu", "modelscope_chunk_seconds"]
    config = SpeedConfig.of(str(tiny_checkpoint), "cpu")
    assert measure(tmp_path / "a.json", config, FIGURES, names) == []
    assert not (tmp_path / "a.json").exists()
    assert [r.message.split(" skipped")[0] for r in caplog.records] == [
        "training_mfu",
        "modelscope figures",
    ]
