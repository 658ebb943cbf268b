"""Time and memory of the paper's base model at its full size, with random weights."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from sfvgen_planner.errors import require
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.timing import SpeedConfig, is_skipped, timed, timing_figure
from sfvgen_planner.world_model import VideoWorldModel
from sfvgen_planner.world_model.checkpoint import quiet_libraries
from sfvgen_planner.world_model.gradient_checkpointing import enable_gradient_checkpointing
from sfvgen_planner.world_model.slow_learning import SlowBatch, SlowObjective, build_scheduler
from sfvgen_planner.world_model.text import build_tokenizer

INSTRUCTION = "put the red cube on the blue pad"
NUM_FRAMES = 16
"""Past frames, and as many new ones: the paper's window of 32."""
NUM_INFERENCE_STEPS = 25
ACTION_SIZE = 4

# The sizes in the published `text-to-video-ms-1.7b`; where diffusers' default is one, it is left.
UNET = {
    "sample_size": 32,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 1024,
    "attention_head_dim": 64,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
TEXT_ENCODER = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}


def measure_base_model(config: SpeedConfig) -> Iterator[Figure]:
    """Training steps with and without gradient checkpointing, and sampled chunks; on a GPU only."""
    if is_skipped("modelscope figures", config):
        return
    model = build_base_model(config.device)
    size = {
        "image_size": model.config.image_size,
        "num_past_frames": NUM_FRAMES,
        "num_future_frames": NUM_FRAMES,
        "batch_size": 1,
        "precision": "bf16",
    }
    for gradient_checkpointing in (False, True):
        if gradient_checkpointing:
            enable_gradient_checkpointing(model.unet)
        torch.cuda.reset_peak_memory_stats(config.device)
        seconds = training_step_seconds(model, config)
        peak_gb = torch.cuda.max_memory_allocated(config.device) / 1e9
        fields = {**size, "gradient_checkpointing": gradient_checkpointing}
        yield timing_figure("modelscope_train_step_seconds", seconds, "s", config, **fields)
        yield timing_figure("modelscope_peak_gb", [peak_gb], "GB", config, **fields)
        gc.collect()
        torch.cuda.empty_cache()
    with quiet_libraries():
        model.to(torch.bfloat16)
    seconds = chunk_seconds(model, config)
    fields = {**size, "num_inference_steps": NUM_INFERENCE_STEPS}
    yield timing_figure("modelscope_chunk_seconds", seconds, "s", config, **fields)


def build_base_model(
    device: torch.device | str,
    unet: Mapping[str, Any] = UNET,
    vae: Mapping[str, Any] = VAE,
    text_encoder: Mapping[str, Any] = TEXT_ENCODER,
) -> VideoWorldModel:
    """A world model of the base model's classes, made on the device; the unet alone is trained.

    Raises:
        SfvgenError: It has its full size, and the device is no GPU.
    """
    require(
        unet is not UNET or torch.device(device).type != "cpu",
        "a model of the paper's size needs a GPU; give --device cuda",
    )
    tokenizer = build_tokenizer([INSTRUCTION], 1000, text_encoder["max_position_embeddings"])
    with torch.device(device):
        model = VideoWorldModel(
            vae=AutoencoderKL(**vae, latent_channels=4),
            text_encoder=CLIPTextModel(CLIPTextConfig(**text_encoder)),
            tokenizer=tokenizer,
            unet=UNet3DConditionModel(**unet),
            scheduler=build_scheduler("epsilon"),
            num_past_frames=NUM_FRAMES,
            num_future_frames=NUM_FRAMES,
            action_low=[-1.0] * ACTION_SIZE,
            action_high=[1.0] * ACTION_SIZE,
        )
    model.vae.requires_grad_(False)
    model.text_encoder.requires_grad_(False)
    return model


def training_step_seconds(model: VideoWorldModel, config: SpeedConfig) -> list[float]:
    """Seconds of slow learning's step on one window: forward, backward, clipping, AdamW."""
    objective = SlowObjective(model)
    objective.unet.train()
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=5e-6, fused=config.on_gpu)
    batch = _random_batch(model)
    device_type = torch.device(config.device).type

    def step() -> None:
        with torch.autocast(device_type, torch.bfloat16):
            loss = objective(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    seconds = timed(step, config, "training steps of the base model")
    objective.unet.eval()
    return seconds


def chunk_seconds(model: VideoWorldModel, config: SpeedConfig) -> list[float]:
    """Seconds of one chunk with an instruction and actions, decoded."""
    past = torch.randn(1, *_window(model, NUM_FRAMES), device=model.device)
    actions = np.zeros((1, NUM_FRAMES, ACTION_SIZE), np.float32)

    def chunk() -> None:
        model(past, INSTRUCTION, actions, num_inference_steps=NUM_INFERENCE_STEPS)

    return timed(chunk, config, "chunks of the base model")


def _random_batch(model: VideoWorldModel) -> SlowBatch:
    device = model.device
    latents, noise = torch.randn(2, 1, *_window(model, 2 * NUM_FRAMES), device=device)
    return SlowBatch(
        latents=latents,
        num_past=NUM_FRAMES,
        actions=torch.rand(1, NUM_FRAMES, ACTION_SIZE, device=device),
        token_ids=model.tokenize([INSTRUCTION]).to(device),
        actions_given=torch.ones(1, device=device),
        context_given=torch.ones(1, device=device),
        noise=noise,
        context_noise=torch.zeros_like(latents),
        timesteps=torch.full((1,), 500, device=device),
    )


def _window(model: VideoWorldModel, num_frames: int) -> tuple[int, int, int, int]:
    channels, height, width = model.latent_size
    return channels, num_frames, height, width
