"""Training of the autoencoder's decoder on what the denoiser imagines."""

import pytest
import torch
from torch.nn.functional import mse_loss

from sfvgen_planner.cli.main import main
from sfvgen_planner.world_model import load_world_model, tiny_world_model
from sfvgen_planner.world_model.autoencoder import (
    FEW_STEPS,
    DecoderObjective,
    decoder_batches,
)
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.recipe import AutoencoderRecipe, Optimisation, Recipe

HOW = Optimisation(steps=1, batch_size=20, learning_rate=1e-3)


@pytest.fixture(scope="module")
def model():
    return tiny_world_model()


def table(model, length=30):
    """Frames whose first pixel is their row number."""
    side = model.config.image_size
    frames = torch.randint(256, (length, side, side, 3), dtype=torch.uint8)
    frames[:, 0, 0, 0] = torch.arange(length)
    return FrameTable(
        frames=frames,
        actions=torch.linspace(-1, 1, length * 4).reshape(length, 4),
        rewards=torch.zeros(length),
        successes=torch.full((length,), -1),
        instruction_ids=torch.zeros(length, dtype=torch.long),
        remaining=torch.arange(length - 1, -1, -1),
        elapsed=torch.arange(length),
        instructions=[""],
    )


def recipe(imagined_share):
    return AutoencoderRecipe(decoder_only=True, imagined_share=imagined_share, optimisation=HOW)


@pytest.mark.parametrize("imagined_share", [0.0, 0.5, 1.0])
def test_frames_come_with_their_own_latents_or_with_imagined_ones(model, imagined_share):
    data = table(model)
    draw = decoder_batches(data, model, recipe(imagined_share), 20)
    frames, latents = draw(torch.Generator().manual_seed(3))
    num_imagined = {0.0: 0, 0.5: 16, 1.0: 24}[imagined_share]
    assert len(frames) == len(latents) == max(20, num_imagined)
    alone = len(frames) - num_imagined
    if alone:
        own = model.encode(frames[None, :alone])[0].transpose(0, 1)
        assert torch.allclose(latents[:alone], own, atol=1e-5)
    if not num_imagined:
        return
    rows = frames[alone:, 0, 0, 0].long().reshape(-1, model.config.num_future_frames)
    assert (rows.diff(dim=1) == 1).all()
    assert rows.min() >= model.config.num_past_frames
    # The same noise, actions and number of steps give the same video from outside.
    past = torch.stack(
        [data.frames[row - model.config.num_past_frames : row] for row in rows[:, 0]]
    )
    actions = torch.stack([data.actions[row - 1 : row + rows.shape[1] - 1] for row in rows[:, 0]])
    generator = torch.Generator().manual_seed(3)
    torch.randint(30, (max(0, alone),), generator=generator)
    torch.rand(len(rows), 1, generator=generator)
    state = generator.get_state()
    candidates = []
    for steps in FEW_STEPS:
        generator.set_state(state)
        video = model(
            past,
            actions=actions,
            num_inference_steps=steps,
            generator=generator,
            output_type="latent",
        ).latents
        candidates.append(video.transpose(1, 2).flatten(0, 1))
    assert any(torch.allclose(latents[alone:], video, atol=1e-4) for video in candidates)


def test_the_decoder_learns_to_show_what_is_imagined(model):
    model = tiny_world_model()
    data = table(model)
    objective = DecoderObjective(model.vae, recipe(1.0), data)
    frames, latents = decoder_batches(data, model, recipe(1.0), 20)(
        torch.Generator().manual_seed(0)
    )
    images = frames.permute(0, 3, 1, 2).float() / 127.5 - 1

    def error():
        video = model.decode(latents.transpose(0, 1)[None])[0]
        return mse_loss(torch.from_numpy(video).permute(0, 3, 1, 2) / 127.5 - 1, images).item()

    before = error()
    optimizer = torch.optim.Adam(model.vae.decoder.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        objective(frames, latents).backward()
        optimizer.step()
    assert error() < 0.9 * before


def test_training_leaves_all_but_the_decoder(store, tiny_checkpoint):
    (store / "decoder.yaml").write_text(
        """
name: tiny
mixed_precision: "no"
data: {sources: [{env_id: sfvgen/TabletopReturn-v0, policy: expert, episodes: 3}]}
autoencoder:
  decoder_only: true
  imagined_share: 0.5
  optimisation: {steps: 2, batch_size: 16, learning_rate: 1.0e-2}
"""
    )
    arguments = ["--recipe", f"{store}/decoder.yaml", "--data", f"{store}/data"]
    arguments += ["--out", f"{store}/decoder", "--init-from", str(tiny_checkpoint)]
    assert main(["train", *arguments]) == 0
    before, after = load_world_model(tiny_checkpoint), load_world_model(store / "decoder/model")
    for part in ("unet", "text_encoder", "vae"):
        old, new = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        changed = {key for key in old if not torch.equal(old[key].half(), new[key].half())}
        assert all(name.startswith(("decoder", "post_quant_conv")) for name in changed)
        assert bool(changed) == (part == "vae")


def test_without_a_denoiser_nothing_is_imagined(store, capsys):
    assert main(["train", *untrained(store)]) == 2
    assert "with --init-from" in capsys.readouterr().err


def test_imagined_frames_are_for_the_decoder_alone():
    with pytest.raises(ValueError, match="imagined_share needs decoder_only"):
        AutoencoderRecipe(imagined_share=0.5, optimisation=HOW)


def untrained(store):
    recipe_file = store / "untrained.yaml"
    recipe_file.write_text(
        """
name: tiny
mixed_precision: "no"
data: {sources: [{env_id: sfvgen/TabletopReturn-v0, policy: expert, episodes: 3}]}
autoencoder:
  decoder_only: true
  imagined_share: 0.5
  optimisation: {steps: 1, batch_size: 16, learning_rate: 1.0e-2}
world_model: {optimisation: {steps: 1, batch_size: 2, learning_rate: 1.0e-2}}
inverse_dynamics: {optimisation: {steps: 1, batch_size: 2, learning_rate: 1.0e-2}}
"""
    )
    assert Recipe.load(recipe_file).autoencoder
    return ["--recipe", str(recipe_file), "--data", f"{store}/data", "--out", f"{store}/untrained"]
