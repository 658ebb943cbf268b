import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import tiny_world_model
from sfvgen_planner.world_model.objective import add_noise, draw_timesteps, target
from sfvgen_planner.world_model.slow_learning import build_scheduler


def test_flow_matching_path_is_straight_and_its_target_is_the_velocity():
    scheduler = FlowMatchEulerDiscreteScheduler()
    clean, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    early = add_noise(scheduler, clean, noise, torch.tensor([250.0, 500.0]))
    late = add_noise(scheduler, clean, noise, torch.tensor([350.0, 600.0]))
    velocity = target(scheduler, clean, noise, torch.tensor([250.0, 500.0]))
    assert torch.allclose(late - early, 0.1 * velocity, atol=1e-5)
    assert torch.allclose(add_noise(scheduler, clean, noise, torch.zeros(2)), clean)
    assert torch.allclose(add_noise(scheduler, clean, noise, torch.full((2,), 1000.0)), noise)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_one_exact_prediction_lets_ddim_recover_the_clean_sample(prediction_type):
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    scheduler.set_timesteps(10)
    clean, noise = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    timesteps = torch.tensor([400])
    noised = add_noise(scheduler, clean, noise, timesteps)
    output = scheduler.step(target(scheduler, clean, noise, timesteps), 400, noised)
    assert torch.allclose(output.pred_original_sample, clean, atol=1e-4)


def test_shifted_timesteps_have_the_density_of_the_sampling_grid():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=4.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    drawn = draw_timesteps(scheduler, torch.tensor([1.0, 0.75, 0.5, 0.25]))
    assert torch.allclose(drawn, scheduler.timesteps)


def test_timesteps_cover_the_schedule():
    uniform = torch.linspace(0, 0.999, 1000)
    flow = draw_timesteps(FlowMatchEulerDiscreteScheduler(), uniform)
    assert flow.min() == 0
    assert 998 < flow.max() < 1000
    ddpm = draw_timesteps(DDIMScheduler(), uniform)
    assert ddpm.dtype == torch.int64
    assert ddpm.max() == 999
    largest = torch.tensor([1 - 2**-24])
    assert draw_timesteps(DDIMScheduler(), largest, min_noise=0.95) == 999


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v_prediction"])
@pytest.mark.parametrize("num_inference_steps", [2, 8])
def test_an_exact_denoiser_leads_the_sampler_to_the_clean_frames(
    prediction, num_inference_steps, monkeypatch
):
    """Whatever is predicted, the noise added in training is the noise taken off in sampling."""
    model = tiny_world_model()
    scheduler = build_scheduler(prediction)
    model.register_modules(scheduler=scheduler)
    clean = torch.full((1, 4, 5, 4, 4), 0.7)

    def exact(window, timesteps, num_past, text_states, actions=None):
        noised = window[:, :, num_past:]
        # The noise that would have led from the clean frames to these, on the training's path.
        origin = add_noise(scheduler, clean, torch.zeros_like(clean), timesteps)
        scale = add_noise(scheduler, torch.zeros_like(clean), torch.ones_like(clean), timesteps)
        predicted = target(scheduler, clean, (noised - origin) / scale, timesteps)
        return torch.cat([window[:, :, :num_past], predicted], dim=2)

    monkeypatch.setattr(model, "denoise", exact)
    past = torch.zeros(1, 4, 1, 4, 4)
    output = model(past, num_frames=5, num_inference_steps=num_inference_steps).latents
    assert torch.allclose(output, clean, atol=1e-2)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(prediction_type="sample"),
        DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        FlowMatchHeunDiscreteScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_schedulers_whose_target_would_be_another_are_refused(scheduler):
    values = torch.ones(1, 3, 4)
    with pytest.raises(SfvgenError, match="not supported"):
        target(scheduler, values, values, torch.tensor([500]))
    model = tiny_world_model()
    model.scheduler = scheduler
    with pytest.raises(SfvgenError, match="not supported"):
        model(np.zeros((1, 4, 64, 64, 3), np.uint8), num_frames=8)
