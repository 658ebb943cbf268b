"""Gradient checkpointing; `UNet3DConditionModel` has none of its own in diffusers."""

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
from diffusers import Transformer2DModel, TransformerTemporalModel
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.utils.checkpoint import checkpoint

from sfvgen_planner.world_model.denoiser import Denoiser

_RECOMPUTED = (
    ResnetBlock2D,
    TemporalConvLayer,
    Transformer2DModel,
    TransformerTemporalModel,
    Upsample2D,
)
"""All that a block is made of. A block at a time would be recomputed whole, and at the highest
resolution that takes several times the memory of the inputs that are kept here instead."""


def enable_gradient_checkpointing(unet: Denoiser) -> None:
    """Keep only the inputs of residual and attention layers; recompute the rest in backward.

    Saves memory for about a third more time. Loss, gradients and state-dict keys stay the same.
    Calls without gradients are not affected.
    """
    if unet._supports_gradient_checkpointing:
        unet.enable_gradient_checkpointing(
            lambda module, *args: _recomputed(module, module.__call__, *args)
        )
        return
    for module in unet.modules():
        # The first block's layers would wait the longest, with the largest inputs.
        if isinstance(module, _RECOMPUTED) or module is unet.down_blocks[0]:
            # From the class, so that a second call does not nest.
            forward = MethodType(type(module).forward, module)
            module.forward = partial(_recomputed, module, forward)


def _recomputed(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Only dropout draws random numbers, and a CUDA graph can't keep their state.
    return checkpoint(
        forward, *args, use_reentrant=False, preserve_rng_state=module.training, **kwargs
    )
