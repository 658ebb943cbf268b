"""The paper's base model, of the same classes, at tiny sizes."""

import torch

from sfvgen_planner.evaluation import base_model_speed

UNET = {
    "sample_size": 4,
    "block_out_channels": (32, 32),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
}
VAE = {**base_model_speed.VAE, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4}
TEXT_ENCODER = {
    **base_model_speed.TEXT_ENCODER,
    "vocab_size": 700,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def tiny_base_model(device="cpu"):
    """What `build_base_model` gives, in place of 1.7 B parameters some ten thousand."""
    torch.manual_seed(0)
    return base_model_speed.build_base_model(device, UNET, VAE, TEXT_ENCODER)
