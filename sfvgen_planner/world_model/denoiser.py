"""The denoiser, untrained: the paper's 3D UNet or a video transformer of about the same cost.

Both are classes of diffusers and mix space and time in layers of their own, so that the fast
weights of an episode find temporal layers in either.
"""

from typing import TypeAlias

from diffusers import LatteTransformer3DModel, UNet3DConditionModel

from sfvgen_planner.world_model.conditioning import num_condition_planes
from sfvgen_planner.world_model.recipe import TransformerRecipe, UNetRecipe

Denoiser: TypeAlias = UNet3DConditionModel | LatteTransformer3DModel


def build_denoiser(
    recipe: UNetRecipe | TransformerRecipe,
    latent_channels: int,
    latent_side: int,
    action_size: int,
    text_size: int,
) -> Denoiser:
    """An untrained denoiser whose input has the latents and the condition planes.

    Args:
        recipe: Its kind and sizes.
        latent_channels: Channels of the autoencoder's latents.
        latent_side: Height and width of a frame's latents in cells.
        action_size: Numbers in one action, A.
        text_size: Size of the text encoder's hidden states.
    """
    in_channels = latent_channels + num_condition_planes(action_size)
    if isinstance(recipe, TransformerRecipe):
        return _build_transformer(recipe, in_channels, latent_channels, latent_side, text_size)
    return _build_unet(recipe, in_channels, latent_channels, latent_side, text_size)


def _build_unet(
    recipe: UNetRecipe, in_channels: int, out_channels: int, latent_side: int, text_size: int
) -> UNet3DConditionModel:
    levels = len(recipe.block_out_channels)
    return UNet3DConditionModel(
        sample_size=latent_side,
        in_channels=in_channels,
        out_channels=out_channels,
        down_block_types=("CrossAttnDownBlock3D",) * (levels - 1) + ("DownBlock3D",),
        up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * (levels - 1),
        block_out_channels=recipe.block_out_channels,
        layers_per_block=recipe.layers_per_block,
        attention_head_dim=recipe.attention_head_dim,
        cross_attention_dim=text_size,
    )


def _build_transformer(
    recipe: TransformerRecipe, in_channels: int, out_channels: int, latent_side: int, text_size: int
) -> LatteTransformer3DModel:
    """Latte (arXiv 2401.03048): blocks over space and over time take turns."""
    return LatteTransformer3DModel(
        sample_size=latent_side,
        in_channels=in_channels,
        out_channels=out_channels,
        num_layers=recipe.num_layers,
        patch_size=recipe.patch_size,
        num_attention_heads=recipe.num_attention_heads,
        attention_head_dim=recipe.attention_head_dim,
        cross_attention_dim=recipe.num_attention_heads * recipe.attention_head_dim,
        caption_channels=text_size,
        # The only norm of Latte's that is told the timestep.
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        activation_fn="gelu-approximate",
        # Latte's position code binds it to windows of this length; that of 1 fits every length
        # and tells nothing. The condition planes tell the time.
        video_length=1,
    )
