"""Sampling one chunk: from noise to frames that follow a clean context (paper section 3.1)."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfvgen_planner.world_model.objective import is_flow


def nothing_to_hear(text_states: Tensor) -> AbstractContextManager[None]:
    """The `hear` of `denoise_chunk` for a denoiser without a memory."""
    return nullcontext()


def nothing_to_show() -> None:
    """The `show_memory` of a model without a memory."""


def denoise_chunk(
    denoise: Callable[..., Tensor],
    hear: Callable[[Tensor], AbstractContextManager[None]],
    scheduler: Any,
    num_inference_steps: int,
    guidance_scale: float,
    progress_bar: Callable[[Iterable[Tensor]], Iterable[Tensor]],
    context: Tensor,
    noise: Tensor,
    text_states: Tensor,
    no_text_states: Tensor | None,
    actions: Tensor | None,
) -> Tensor:
    """The frames that `noise` becomes after `context`.

    The scheduler stays on the CPU: its numbers go along with the kernels that are launched, none is
    read back, and a CUDA graph keeps them.

    Args:
        denoise: `VideoWorldModel.denoise`, or the same compiled.
        hear: Reads instructions once for all steps; what it gives is entered at each call of
            `denoise` with them.
        scheduler: diffusers' noise schedule and sampler.
        num_inference_steps: Denoiser calls, twice as many with guidance.
        guidance_scale: Of classifier-free guidance.
        progress_bar: Shows the steps.
        context: Clean latents `(batch, channels, f_p, h, w)`.
        noise: `(batch, channels, frames, h, w)`.
        text_states: `(batch, tokens, dim)`.
        no_text_states: Those of no instruction, to guide away from; None for no guidance.
        actions: `(batch, frames, A)` in [-1, 1], or None.

    Returns:
        Latents of the shape of `noise`.
    """
    batch, _, num_past = context.shape[:3]
    latents = noise
    flow = is_flow(scheduler)
    if flow:
        # diffusers' default grid ends at sigma 0.001 and so wastes one of the few steps.
        sigmas = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(sigmas=sigmas, device="cpu")
    else:
        scheduler.set_timesteps(num_inference_steps, device="cpu")
        latents = latents * scheduler.init_noise_sigma
    heard = hear(text_states)
    heard_nothing = None if no_text_states is None else hear(no_text_states)
    for timestep in progress_bar(scheduler.timesteps):
        scaled = latents if flow else scheduler.scale_model_input(latents, timestep)
        window = torch.cat([context, scaled], dim=2)
        timesteps = torch.full((batch,), timestep.item(), device=window.device)
        with heard:
            prediction = denoise(window, timesteps, num_past, text_states, actions).float()
        if heard_nothing is not None:
            with heard_nothing:
                plain = denoise(window, timesteps, num_past, no_text_states, actions).float()
            prediction = plain + guidance_scale * (prediction - plain)
        prediction = prediction[:, :, num_past:]
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return latents
