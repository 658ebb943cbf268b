"""The code that runs attention and convolutions, chosen for its speed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from diffusers import Transformer2DModel, TransformerTemporalModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn

from sfvgen_planner.world_model.denoiser import Denoiser

SHORT_SEQUENCE = 256
"""Cells of a frame's latents up to which plain attention is the fastest over space too."""


def use_fast_kernels(unet: Denoiser, vae: nn.Module, latent_cells: int) -> None:
    """Choose the code that samples fastest on the device that the modules are on, in place.

    Args:
        unet: The denoiser.
        vae: The autoencoder of single frames.
        latent_cells: Height times width of one frame's latents.
    """
    # The shapes repeat, so cuDNN may search for its fastest algorithms.
    torch.backends.cudnn.benchmark = True
    if latent_cells <= SHORT_SEQUENCE:
        use_trainable_attention(unet)
    use_whole_products(unet)
    if unet.device.type == "cuda":
        for module in (unet, vae):
            use_channels_last(module)


def use_channels_last(module: nn.Module) -> None:
    """Keep the convolutions' weights in the order that a GPU's matrix units read them, in place.

    Their inputs and outputs follow, which saves turning them around at every convolution.
    """
    orders = {4: torch.channels_last, 5: torch.channels_last_3d}
    for name, parameter in module.named_parameters():
        # Adapters stay as they are saved.
        if parameter.dim() in orders and "lora_" not in name:
            order = orders[parameter.dim()]
            parameter.data = parameter.data.contiguous(memory_format=order)


def use_whole_products(unet: Denoiser) -> None:
    """Let attention layers turn their input around before their first product, in place.

    PyTorch would multiply the turned view sample by sample where the weights are frozen, as under
    a memory: over time that is a small product for each cell. Either way it adds the bias in a
    kernel of its own, which one product of a whole input has within it.
    """
    module: Any
    for module in unet.modules():
        if isinstance(module, Transformer2DModel | TransformerTemporalModel):
            proj_in = module.proj_in
            # From the class, so that a second call does not nest.
            if type(proj_in) is nn.Linear:
                proj_in.forward = partial(_of_contiguous, MethodType(nn.Linear.forward, proj_in))  # type: ignore[method-assign]


def _of_contiguous(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return forward(x.contiguous())


def use_trainable_attention(unet: Denoiser) -> None:
    """Choose the attention code that is fastest when gradients are needed.

    PyTorch's fused attention is made for long sequences. For the many short ones over time, plain
    matrix products are faster, on a CPU and, once compiled, on a GPU.
    """
    for module in unet.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())


@contextmanager
def trainable_attention(unet: Denoiser, latent_cells: int) -> Iterator[None]:
    """`use_trainable_attention` for a while, where plain attention is the fastest over space too.

    Args:
        unet: The denoiser.
        latent_cells: Height times width of one frame's latents.
    """
    if latent_cells > SHORT_SEQUENCE:
        yield
        return
    usual = {m: m.processor for m in unet.modules() if isinstance(m, Attention)}
    use_trainable_attention(unet)
    try:
        yield
    finally:
        for module, processor in usual.items():
            module.set_processor(processor)
