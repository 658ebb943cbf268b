"""The denoising objective, shared by slow learning (Eq. 1-2) and fast learning (Eq. 3).

diffusers' scheduler says what is predicted: flow matching predicts the velocity `noise - x`,
the DDPM family predicts the noise (the paper's choice) or the v-target.
"""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from sfvgen_planner.errors import require

DDPM_PREDICTIONS = ("epsilon", "v_prediction")
"""What a denoiser can predict under a scheduler of the DDPM family, by diffusers' names."""


def draw_timesteps(scheduler: Any, uniform: Tensor, min_noise: float = 0.0) -> Tensor:
    """Training timesteps from uniform numbers in [0, 1), of any shape.

    Flow matching: continuous, with the density of the scheduler's own shifted grid, so that
    training dwells where sampling takes its steps. DDPM family: whole steps, uniform.

    Args:
        scheduler: diffusers' scheduler.
        uniform: The random numbers.
        min_noise: Draw only from this share of all timesteps on, in [0, 1).
    """
    count = scheduler.config.num_train_timesteps
    if not is_flow(scheduler):
        # A number just below 1 may be rounded up to it.
        return ((min_noise + (1 - min_noise) * uniform) * count).long().clamp(max=count - 1)
    shift = scheduler.config.shift
    lowest = min_noise / (shift - (shift - 1) * min_noise)
    uniform = lowest + (1 - lowest) * uniform
    return shift * uniform / (1 + (shift - 1) * uniform) * count


def add_noise(scheduler: Any, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The noised latents of the forward process at `timesteps`, same shape as `clean`."""
    if is_flow(scheduler):
        sigma = _broadcast(timesteps / scheduler.config.num_train_timesteps, clean)
        return (1 - sigma) * clean + sigma * noise
    noised: Tensor = scheduler.add_noise(clean, noise, timesteps)
    return noised


def target(scheduler: Any, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoiser should output, same shape as `clean`."""
    if is_flow(scheduler):
        return noise - clean
    if scheduler.config.prediction_type == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(clean, noise, timesteps)
        return velocity
    return noise


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers is of flow matching, or else of the DDPM family.

    Raises:
        SfvgenError: It is of neither, so that the denoiser would be taught something else than what
            the sampler takes it for.
    """
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    config = getattr(scheduler, "config", {})
    if flow:
        known = not config["use_dynamic_shifting"]
    else:
        known = config.get("prediction_type") in DDPM_PREDICTIONS
        known = known and not config.get("use_flow_sigmas")
    require(
        known,
        f"{type(scheduler).__name__} with these settings is not supported: take "
        "FlowMatchEulerDiscreteScheduler without use_dynamic_shifting, or one of the DDPM family "
        f"with the prediction_type {' or '.join(DDPM_PREDICTIONS)}",
    )
    return flow


def _broadcast(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).reshape(-1, *([1] * (like.dim() - 1)))
