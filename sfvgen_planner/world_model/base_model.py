"""Fit pretrained components to the world model: a text-to-video UNet, any image VAE, any CLIP.

The paper starts from ModelScope's text-to-video model and adds input channels for what the
denoiser is conditioned on (section 3.1). Their weights begin at zero, so that before any training
the denoiser gives what the pretrained one gives.
"""

from typing import Any

import torch
from diffusers import LatteTransformer3DModel
from torch import nn

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.conditioning import num_condition_planes
from sfvgen_planner.world_model.denoiser import Denoiser


def fit_unet(unet: Denoiser, latent_channels: int, text_size: int, action_size: int) -> None:
    """Give the denoiser an input channel for each condition plane, in place.

    One that has them already stays as it is.

    Args:
        unet: A world model's denoiser, or one that takes nothing but latents.
        latent_channels: Channels of the autoencoder's latents.
        text_size: Size of the text encoder's hidden states.
        action_size: Numbers in one action, A.

    Raises:
        SfvgenError: Its channels or its text size fit neither case, or it is a transformer that
            takes windows of one length only.
    """
    config = unet.config
    is_transformer = isinstance(unet, LatteTransformer3DModel)
    if is_transformer and config.video_length != 1:
        raise SfvgenError(
            f"the unet takes windows of exactly {config.video_length} frames, but a world model's "
            "vary; use a transformer of video_length 1, which takes any number"
        )
    if config.out_channels != latent_channels:
        raise SfvgenError(
            f"the unet denoises latents of {config.out_channels} channels, but the vae makes "
            f"{latent_channels}; use a vae of {config.out_channels} latent channels"
        )
    read_size = config.caption_channels if is_transformer else config.cross_attention_dim
    if read_size != text_size:
        raise SfvgenError(
            f"the unet reads text states of {read_size} numbers, but the text encoder makes "
            f"{text_size}; use one with hidden_size {read_size}"
        )
    # diffusers hard-codes a dropout of 0.1 in the temporal convolutions, which only blurs a
    # denoiser that sees every sample with fresh noise anyway.
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    num_planes = num_condition_planes(action_size)
    wanted = latent_channels + num_planes
    if config.in_channels == latent_channels:
        inflate_conv_in(unet, wanted)
    elif config.in_channels != wanted:
        raise SfvgenError(
            f"the unet takes {config.in_channels} input channels, which must be {latent_channels} "
            f"(latents only) or {wanted} (with the {num_planes} condition planes of actions of "
            f"{action_size} numbers); set action_low and action_high as the unet was trained"
        )


@torch.no_grad()
def inflate_conv_in(unet: Denoiser, in_channels: int) -> None:
    """Widen the first convolution to `in_channels`; the new weights are zero and learnable."""
    name = "pos_embed.proj" if isinstance(unet, LatteTransformer3DModel) else "conv_in"
    old = unet.get_submodule(name)
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        kernel_size=old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    new.weight.zero_()
    new.weight[:, : old.in_channels] = old.weight
    new.bias = old.bias
    unet.set_submodule(name, new)
    unet.register_to_config(in_channels=in_channels)


def fit_image_size(unet: Denoiser, factor: int, image_size: int | None) -> int:
    """Height and width of a frame in pixels; by default the size the denoiser was made for.

    Args:
        unet: The denoiser; its `sample_size` is in cells of the latents.
        factor: Pixels per cell of the latents.
        image_size: The size that was asked for.

    Raises:
        SfvgenError: The size is no multiple of `factor` and the transformer's patches, or none
            is known.
    """
    if image_size is None:
        if not isinstance(unet.config.sample_size, int):
            raise SfvgenError(
                f"the unet's sample_size is {unet.config.sample_size}, which tells no square "
                f"image; give image_size, a multiple of {factor}"
            )
        image_size = unet.config.sample_size * factor
    patch_size = unet.config.get("patch_size", 1)
    if image_size < 1 or image_size % (factor * patch_size):
        patches = f" times the unet's patch_size {patch_size}" if patch_size > 1 else ""
        raise SfvgenError(
            f"image_size must be a multiple of the vae's factor {factor}{patches}, got {image_size}"
        )
    return int(image_size)


def latent_geometry(vae: Any) -> tuple[int, int]:
    """Latent channels of an image autoencoder, and pixels per cell of its latents.

    Raises:
        SfvgenError: It is no diffusers autoencoder of single RGB images, or one whose latents are
            normalised channel by channel.
    """
    channels = vae.config.get("latent_channels")
    # Every image autoencoder of diffusers registers these, whatever its arguments are called.
    blocks = vae.config.get("block_out_channels")
    if channels is None or blocks is None:
        raise SfvgenError(
            f"the vae is a {type(vae).__name__}, which does not encode single images; use one "
            "such as AutoencoderKL or AutoencoderTiny"
        )
    image_channels = (vae.config.in_channels, vae.config.out_channels)
    if image_channels != (3, 3):
        raise SfvgenError(
            f"the vae turns images of {image_channels[0]} channels into {image_channels[1]}, but "
            "frames are RGB; use one of 3 channels"
        )
    if vae.config.get("latents_mean") is not None or vae.config.get("latents_std") is not None:
        raise SfvgenError(
            "the vae normalises its latents channel by channel (latents_mean, latents_std); use "
            "one with a single scaling_factor"
        )
    return int(channels), int(2 ** (len(blocks) - 1))
