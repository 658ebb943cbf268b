"""Recipes of tiny networks for tests of training."""

RECIPE = """
name: tiny
mixed_precision: "no"
data:
  sources:
    - {env_id: sfvgen/TabletopReturn-v0, policy: expert, episodes: 3,
       env_kwargs: {level: 1, recall: none}}
autoencoder:
  block_out_channels: [8, 8, 8, 8, 8]
  latent_channels: 4
  norm_num_groups: 4
  optimisation: {steps: 4, batch_size: 4, learning_rate: 1.0e-3}
world_model:
  unet: {block_out_channels: [32, 32], attention_head_dim: 8}
  text: {hidden_size: 16, num_layers: 1, num_heads: 2}
  optimisation: {steps: STEPS, batch_size: 2, learning_rate: 1.0e-3, checkpoint_every: 5}
inverse_dynamics:
  block_out_channels: [8, 8, 8, 8]
  hidden_size: 16
  optimisation: {steps: 4, batch_size: 4, learning_rate: 1.0e-3}
"""

OUTCOME_HEAD = """
outcome_head:
  hidden_size: 16
  num_blocks: 1
  optimisation: {steps: 2, batch_size: 4, learning_rate: 1.0e-3}
"""

TEMPORAL_DISTANCE = """
temporal_distance:
  hidden_size: 16
  num_blocks: 1
  max_frames: 10
  optimisation: {steps: 4, batch_size: 4, learning_rate: 1.0e-3, checkpoint_every: 2}
"""
