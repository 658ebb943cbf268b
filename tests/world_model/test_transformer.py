from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LatteTransformer3DModel
from diffusers.models.attention_processor import Attention, AttnProcessor

from sfvgen_planner.data.recipe import validated
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import VideoWorldModel, tiny_world_model
from sfvgen_planner.world_model.base_model import fit_unet
from sfvgen_planner.world_model.conditioning import num_condition_planes
from sfvgen_planner.world_model.denoiser import build_denoiser
from sfvgen_planner.world_model.gradient_checkpointing import enable_gradient_checkpointing
from sfvgen_planner.world_model.kernels import use_trainable_attention
from sfvgen_planner.world_model.recipe import (
    Optimisation,
    Recipe,
    TransformerRecipe,
    UNetRecipe,
    WorldModelRecipe,
)
from sfvgen_planner.world_model.slow_learning import SlowBatch, SlowObjective

TEXT = "put the red cube on the blue pad"
ACTIONS = {"action_low": [-1.0] * 4, "action_high": [1.0] * 4}
PAST = np.random.default_rng(0).integers(0, 256, (2, 4, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def model():
    return tiny_world_model(denoiser="transformer")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def denoise(model, num_frames=6, rows=slice(None)):
    """Velocities of two windows of 2 context frames, at timesteps between the whole numbers."""
    return model.denoise(
        noise(2, 4, num_frames, 4, 4)[rows],
        torch.tensor([0.0, 812.5])[rows],
        2,
        noise(2, 16, 16, seed=1)[rows],
        noise(2, num_frames - 2, 4, seed=2)[rows].clamp(-1, 1),
    )


def sample(model, **arguments):
    return model(PAST, TEXT, generator=torch.Generator().manual_seed(0), **arguments).latents


@torch.no_grad()
@pytest.mark.parametrize("patch_size", [1, 2])
def test_windows_of_any_length_keep_their_shape_and_scale(model, patch_size):
    unet = build_denoiser(
        TransformerRecipe(patch_size=patch_size, num_attention_heads=2, attention_head_dim=8),
        latent_channels=4,
        latent_side=4,
        action_size=4,
        text_size=16,
    ).eval()
    model.register_modules(unet=unet)
    for num_frames in (3, 9, 12, 20):
        velocity = denoise(model, num_frames)
        assert velocity.shape == (2, 4, num_frames, 4, 4)
        assert velocity.std() < 2
    assert sample(model, num_frames=11, num_inference_steps=1).shape == (2, 4, 11, 4, 4)


@torch.no_grad()
def test_a_window_does_not_depend_on_its_neighbours_in_the_batch(model):
    both = denoise(model)
    for i in range(2):
        alone = denoise(model, rows=slice(i, i + 1))
        assert torch.allclose(both[i], alone[0], atol=1e-5)


@torch.no_grad()
def test_timesteps_are_continuous(model):
    window, states = noise(1, 4, 6, 4, 4), noise(1, 16, 16)
    low, mid, high = (
        model.denoise(window, torch.tensor([timestep]), 2, states)
        for timestep in (500.0, 500.5, 501.0)
    )
    assert 0 < (mid - low).abs().max() < (high - low).abs().max()


@torch.no_grad()
def test_the_order_of_words_and_of_frames_counts(model):
    window, states, when = noise(1, 4, 6, 4, 4), noise(1, 16, 16), torch.tensor([500.0])
    plain = model.denoise(window, when, 2, states)
    other = model.denoise(window, when, 2, noise(1, 16, 16, seed=1))
    assert (other - plain).abs().max() > 1e-4
    # Without a code of time, frames in another order would only give their answers in that order.
    swapped = model.denoise(window[:, :, [0, 1, 5, 4, 3, 2]], when, 2, states)
    assert (swapped - plain[:, :, [0, 1, 5, 4, 3, 2]]).abs().max() > 1e-4
    red, blue = (
        model.encode_instructions([f"put the {colours} pad"])
        for colours in ("red cube on the blue", "blue cube on the red")
    )
    told = model.denoise(window, when, 2, red) - model.denoise(window, when, 2, blue)
    assert told.abs().max() > 1e-5


def batch(model):
    window = noise(4, 4, 6, 4, 4)
    return SlowBatch(
        latents=window,
        num_past=2,
        actions=noise(4, 4, 4, seed=2).clamp(-1, 1),
        token_ids=model.tokenize([TEXT, TEXT, "", ""]),
        actions_given=torch.tensor([1.0, 0.0, 1.0, 0.0]),
        context_given=torch.tensor([1.0, 1.0, 1.0, 0.0]),
        noise=noise(4, 4, 6, 4, 4, seed=4),
        context_noise=torch.zeros_like(window),
        timesteps=torch.tensor([100.0, 400.0, 700.0, 950.5]),
    )


def test_slow_learning_reaches_every_weight_and_lowers_the_loss(model):
    objective = SlowObjective(model)
    use_trainable_attention(model.unet)
    assert all(
        isinstance(module.processor, AttnProcessor)
        for module in model.unet.modules()
        if isinstance(module, Attention)
    )
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = objective(*batch(model))
        optimiser.zero_grad()
        loss.backward()
        if not losses:
            for name, parameter in model.unet.named_parameters():
                assert parameter.grad.abs().max() > 0, name
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_recomputing_activations_changes_no_gradient(model):
    def gradients():
        model.unet.zero_grad()
        denoise(model).square().mean().backward()
        return {name: p.grad.clone() for name, p in model.unet.named_parameters()}

    wanted = gradients()
    enable_gradient_checkpointing(model.unet)
    assert model.unet.gradient_checkpointing
    for name, gradient in gradients().items():
        assert torch.allclose(gradient, wanted[name], atol=1e-6), name


def test_a_saved_model_imagines_the_same_video(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    loaded = VideoWorldModel.from_pretrained(tmp_path / "model")
    assert isinstance(loaded.unet, LatteTransformer3DModel)
    assert torch.equal(sample(loaded, num_frames=9), sample(model, num_frames=9))


def latte(**changes):
    sizes = {"in_channels": 4, "out_channels": 4, "caption_channels": 16, "video_length": 1}
    return LatteTransformer3DModel(
        **{**sizes, **changes},
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        sample_size=4,
        patch_size=2,
    ).eval()


@torch.no_grad()
def test_a_transformer_of_plain_latents_grows_inputs_that_change_nothing(model):
    unet = latte()
    window, states, when = noise(1, 4, 5, 4, 4), noise(1, 16, 16), torch.tensor([981])
    wanted = unet(window, when, encoder_hidden_states=states).sample
    fit_unet(unet, latent_channels=4, text_size=16, action_size=4)
    assert unet.config.in_channels == 4 + num_condition_planes(4)
    model.register_modules(unet=unet)
    assert torch.allclose(model.denoise(window, when, 2, states), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("unet", "words"),
    [
        (latte(caption_channels=32), "reads text states of 32 numbers, but the text .* makes 16"),
        (latte(out_channels=8), "denoises latents of 8 channels, but the vae makes 4"),
        (latte(in_channels=9), "takes 9 input channels"),
        (latte(video_length=16), "windows of exactly 16 frames"),
    ],
)
def test_a_transformer_that_does_not_fit_is_told(model, unet, words):
    with pytest.raises(SfvgenError, match=words):
        VideoWorldModel(**{**model.components, "unet": unet})


def test_images_are_whole_patches(model):
    with pytest.raises(SfvgenError, match="factor 16 times the unet's patch_size 2, got 48"):
        VideoWorldModel(**model.components, image_size=48, **ACTIONS)


OPTIMISATION = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}


def test_a_recipe_has_one_denoiser_and_the_paper_s_by_default():
    optimisation = Optimisation(**OPTIMISATION)
    assert WorldModelRecipe(optimisation=optimisation).denoiser == UNetRecipe()
    transformer = TransformerRecipe(num_layers=3)
    recipe = WorldModelRecipe(transformer=transformer, optimisation=optimisation)
    assert recipe.denoiser == transformer


def test_the_denoiser_of_the_shipped_recipe_is_exchanged_by_a_change():
    path = Path(__file__).parents[2] / "recipes/tabletop.yaml"
    shipped = Recipe.load(path).model_dump()
    changes = ["world_model.unet=null", "world_model.transformer={num_layers: 3}"]
    changes += ["world_model.transformer.patch_size=2", "seed=7"]
    other = Recipe.load(path, changes).model_dump()
    assert other["world_model"].pop("unet") is None
    assert (
        other["world_model"].pop("transformer")
        == TransformerRecipe(num_layers=3, patch_size=2).model_dump()
    )
    assert other.pop("seed") == 7
    del shipped["seed"], shipped["world_model"]["unet"], shipped["world_model"]["transformer"]
    assert shipped == other


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("world_model.shift", "looks like key.key=value, not 'world_model.shift'"),
        ("=3", "looks like key.key=value"),
        ("seed.more=3", "seed is no section"),
        ("seed={3", "'seed={3' is no YAML: "),
        ("world_model.shfit=3", "world_model.shfit: Extra inputs"),
        ("world_model.shift=-3", "world_model.shift: .*greater than 0"),
    ],
)
def test_a_wrong_change_of_a_recipe_is_one_clear_sentence(change, words):
    with pytest.raises(SfvgenError, match=words):
        Recipe.load(Path(__file__).parents[2] / "recipes/tabletop.yaml", [change])


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"transformer": {}, "unet": {}}, "world_model: .*give unet or transformer, not both"),
        ({"transformer": {"layers": 3}}, "world_model.transformer.layers: Extra inputs"),
        ({"transformer": {"patch_size": 0}}, "transformer.patch_size: .*greater than 0"),
        ({"transformer": {"attention_head_dim": 6}}, "attention_head_dim: .*multiple of 4"),
    ],
)
def test_a_wrong_recipe_is_one_clear_sentence(section, words):
    recipe = {
        "name": "wrong",
        "data": {"sources": [{"env_id": "Some-v0", "policy": "random", "episodes": 1}]},
        "world_model": {**section, "optimisation": OPTIMISATION},
    }
    with pytest.raises(SfvgenError, match=words) as caught:
        validated(Recipe, recipe, "recipe.yaml")
    assert "\n" not in str(caught.value)
