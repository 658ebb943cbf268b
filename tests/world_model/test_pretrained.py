"""A recipe's pretrained components, and the paper's base model, from the command line."""

import json
import re
import shutil
from fnmatch import fnmatch

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, TextToVideoSDPipeline
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from sfvgen_planner.cli.main import main
from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import load_world_model
from sfvgen_planner.world_model.new_models import load_parts
from sfvgen_planner.world_model.pretrained import load_text, load_vae
from sfvgen_planner.world_model.recipe import Recipe
from sfvgen_planner.world_model.text import build_text_encoder, build_tokenizer
from tests.tiny_base_model import tiny_base_model

TEXT = "put the red cube on the blue pad"
RECIPE = """
name: tiny
mixed_precision: "no"
data:
  sources:
    - {env_id: sfvgen/TabletopReturn-v0, policy: expert, episodes: 2,
       env_kwargs: {level: 1, recall: none}}
autoencoder: {pretrained: VAE}
world_model:
  unet: {block_out_channels: [32, 32], attention_head_dim: 8}
  text: {pretrained: CLIP}
  optimisation: {steps: 2, batch_size: 2, learning_rate: 1.0e-2, warmup_steps: 0, ema_decay: 0.0}
inverse_dynamics:
  block_out_channels: [8, 8, 8, 8]
  hidden_size: 16
  optimisation: {steps: 1, batch_size: 4, learning_rate: 1.0e-3}
"""


def tiny_vae(**settings):
    sizes = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "latent_channels": 6}
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        **{**sizes, "scaling_factor": 0.3, "shift_factor": 0.1, **settings},
    ).eval()


def tiny_clip(hidden_size=24):
    tokenizer = build_tokenizer([TEXT], 600, 20)
    return build_text_encoder(tokenizer, hidden_size, num_layers=1, num_heads=2).eval(), tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Episodes, a recipe, and the pretrained components that it names."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(5)
    # As those of Stable Diffusion 3 and Flux are.
    tiny_vae(use_quant_conv=False, use_post_quant_conv=False).save_pretrained(folder / "vae")
    for part in tiny_clip():
        part.save_pretrained(folder / "clip")
    recipe = RECIPE.replace("VAE", f"{folder}/vae").replace("CLIP", f"{folder}/clip")
    (folder / "recipe.yaml").write_text(recipe)
    assert main(["collect", "--recipe", f"{folder}/recipe.yaml", "--out", f"{folder}/data"]) == 0
    return folder


def train(folder, out, *changes, init_from=None):
    command = ["train", "--recipe", f"{folder}/recipe.yaml", "--data", f"{folder}/data"]
    command += ["--out", str(out)]
    command += [] if init_from is None else ["--init-from", str(init_from)]
    return main([*command, "--set", *changes] if changes else command)


@pytest.fixture(scope="module")
def trained(folder):
    assert train(folder, folder / "run") == 0
    return folder / "run"


def has_weights_of(module, source):
    """Whether a checkpoint's module has the weights of its source, in half precision."""
    found, wanted = module.state_dict(), source.state_dict()
    assert found.keys() == wanted.keys()
    return all(torch.equal(found[key].half(), wanted[key].half()) for key in found)


@torch.no_grad()
def test_pretrained_components_are_in_the_model_as_they_were(folder, trained):
    model = load_world_model(trained / "model")
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    clip = CLIPTextModel.from_pretrained(folder / "clip")
    assert has_weights_of(model.vae, vae)
    assert has_weights_of(model.text_encoder, clip)
    assert (model.vae.config.scaling_factor, model.vae.config.shift_factor) == (0.3, 0.1)
    assert model.latent_size == (6, 8, 8)
    assert model.unet.config.cross_attention_dim == 24
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 64, 64, 3), dtype=np.uint8)
    images = torch.from_numpy(frames[0]).permute(0, 3, 1, 2) / 127.5 - 1
    latents = (vae.encode(images).latent_dist.mode() - 0.1) * 0.3
    torch.testing.assert_close(model.encode(frames)[0].transpose(0, 1), latents, atol=5e-3, rtol=0)
    tokens = CLIPTokenizer.from_pretrained(folder / "clip")(
        TEXT, padding="max_length", max_length=20, return_tensors="pt"
    )
    states = clip(tokens.input_ids).last_hidden_state
    torch.testing.assert_close(model.encode_instructions([TEXT]), states, atol=1e-2, rtol=0)
    # A folder that travels tells nobody where it was made.
    configs = [path.read_text() for path in (trained / "model").rglob("*.json")]
    assert not any(str(folder) in text for text in configs)


def test_frozen_weights_are_bit_identical_and_have_neither_averages_nor_moments(folder, trained):
    (checkpoint,) = (trained / "world_model").glob("checkpoint-*")
    weights = load_file(checkpoint / "model.safetensors")
    for name, value in load_file(folder / "clip/model.safetensors").items():
        assert torch.equal(weights[f"text_encoder.{name.removeprefix('text_model.')}"], value)
    for file in ("ema", "optimiser"):
        names = load_file(checkpoint / f"{file}.safetensors")
        assert names
        assert all(name.startswith("unet.") for name in names)
    assert not (trained / "autoencoder").exists()


def test_the_text_encoder_can_be_trained_on(folder, tmp_path):
    assert train(folder, tmp_path / "run", "world_model.text.train=true") == 0
    model = load_world_model(tmp_path / "run/model")
    assert not has_weights_of(model.text_encoder, CLIPTextModel.from_pretrained(folder / "clip"))
    assert has_weights_of(model.vae, AutoencoderKL.from_pretrained(folder / "vae"))
    assert not model.config.text_frozen


def test_going_on_leaves_a_frozen_text_encoder_alone_unless_told_otherwise(
    folder, trained, tmp_path, capsys
):
    start = load_world_model(trained / "model")
    assert train(folder, tmp_path / "run", init_from=trained / "model") == 2
    assert "autoencoder.pretrained, but the model of --init-from has its own" in (
        capsys.readouterr().err
    )
    own = ["autoencoder=null", "world_model.text.pretrained=null"]
    for out, change, stays in (("kept", [], True), ("on", ["world_model.text.train=true"], False)):
        assert train(folder, tmp_path / out, *own, *change, init_from=trained / "model") == 0
        model = load_world_model(tmp_path / out / "model")
        assert has_weights_of(model.text_encoder, start.text_encoder) == stays
        assert model.config.text_frozen == stays
        assert not has_weights_of(model.unet, start.unet)


def test_the_decoder_of_a_pretrained_autoencoder_can_be_trained_on(folder, trained, tmp_path):
    how = "{decoder_only: true, optimisation: {steps: 2, batch_size: 2, learning_rate: 0.01}}"
    changes = (f"autoencoder={how}", "world_model=null", "inverse_dynamics=null")
    assert train(folder, tmp_path / "run", *changes, init_from=trained / "model") == 0
    before = load_world_model(trained / "model").vae
    after = load_world_model(tmp_path / "run/model").vae
    assert has_weights_of(after.encoder, before.encoder)
    assert not has_weights_of(after.decoder, before.decoder)
    assert after.config.scaling_factor == 0.3


@torch.no_grad()
def test_parts_of_a_pipeline_and_of_a_whole_clip_load(tmp_path):
    model = tiny_base_model()
    model.save_pretrained(tmp_path / "pipeline")
    encoder, tokenizer = load_text(f"{tmp_path}/pipeline", "text_encoder", "tokenizer")
    ids = model.tokenize([TEXT])
    assert tokenizer(TEXT).input_ids == model.tokenizer(TEXT).input_ids
    wanted = model.text_encoder(ids).last_hidden_state
    # Also where attention has dropout in training.
    assert torch.equal(encoder.train()(ids).last_hidden_state, wanted)
    vae = load_vae(f"{tmp_path}/pipeline", "vae")
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    wanted = model.vae.encode(images).latent_dist.mode()
    assert torch.equal(vae.encode(images).latent_dist.mode(), wanted)

    clip, tokenizer = tiny_clip(16)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    text = {**clip.config.to_dict(), "attention_dropout": 0.5}
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=sizes, projection_dim=16)).eval()
    whole.half().save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    encoder, _ = load_text(f"{tmp_path}/clip")
    ids = tokenizer([TEXT], return_tensors="pt").input_ids
    assert encoder.dtype == torch.float32
    wanted = whole.float().text_model(ids).last_hidden_state
    assert torch.equal(encoder.train()(ids).last_hidden_state, wanted)


def test_a_recipe_may_name_revisions_on_the_hub(folder, monkeypatch):
    asked = []

    def download(repo_id, revision, allow_patterns):
        asked.append((repo_id, revision))
        # Where the whole repository is wanted.
        assert "*.safetensors" in allow_patterns
        return str(folder / repo_id.removeprefix("user/"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    changes = ["autoencoder.pretrained=user/vae@v1.0", "world_model.text.pretrained=user/clip@main"]
    recipe = Recipe.load(folder / "recipe.yaml", changes)
    vae, (encoder, _) = load_parts(recipe, EpisodeStore.open(folder / "data"))
    assert asked == [("user/vae", "v1.0"), ("user/clip", "main")]
    assert has_weights_of(vae, AutoencoderKL.from_pretrained(folder / "vae"))
    assert has_weights_of(encoder, CLIPTextModel.from_pretrained(folder / "clip"))


def test_of_a_pipeline_on_the_hub_only_the_parts_are_downloaded(tmp_path, monkeypatch):
    model = tiny_base_model()
    model.save_pretrained(tmp_path / "pipeline")

    def download(repo_id, allow_patterns):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        for path in (tmp_path / "pipeline").rglob("*.*"):
            name = str(path.relative_to(tmp_path / "pipeline"))
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, tmp_path / "cache" / name)
        return str(tmp_path / "cache")

    def parts():
        return sorted(path.name for path in (tmp_path / "cache").iterdir())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert has_weights_of(load_vae("user/pipeline", "vae"), model.vae)
    assert parts() == ["vae"]
    encoder, tokenizer = load_text("user/pipeline", "text_encoder/", "tokenizer")
    assert has_weights_of(encoder, model.text_encoder)
    assert tokenizer(TEXT).input_ids == model.tokenizer(TEXT).input_ids
    assert parts() == ["text_encoder", "tokenizer"]
    with pytest.raises(SfvgenError, match="user/pipeline has no folder nothing; correct"):
        load_vae("user/pipeline", "nothing")


def test_what_the_hub_does_not_have_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for load in (load_vae, load_text):
        with pytest.raises(SfvgenError, match=r"no folder user/none@v1, and the Hugging Face Hub"):
            load("user/none@v1")


def test_any_image_autoencoder_loads(tmp_path):
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    vae = AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    vae.save_pretrained(tmp_path)
    loaded = load_vae(str(tmp_path))
    assert isinstance(loaded, AutoencoderTiny)
    assert all(torch.equal(value, vae.state_dict()[k]) for k, value in loaded.state_dict().items())


def without_a_weight(folder, file, name):
    weights = load_file(folder / file)
    weights.pop(name)
    save_file(weights, folder / file, metadata={"format": "pt"})


def as_pickle(folder, file, name):
    torch.save(load_file(folder / file), folder / name)
    (folder / file).unlink()


def with_settings(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


VAE_FILE = "diffusion_pytorch_model.safetensors"
BROKEN_VAES = [
    (lambda f: shutil.rmtree(f), "there is no folder .*vae; give one that exists"),
    (lambda f: (f / VAE_FILE).unlink(), "holds no safetensors weights"),
    (lambda f: as_pickle(f, VAE_FILE, "pytorch.bin"), "only pytorch.bin, which is a pickle"),
    (
        lambda f: without_a_weight(f, VAE_FILE, "decoder.conv_in.bias"),
        "lacks 1 of the weights of AutoencoderKL, such as decoder.conv_in.bias",
    ),
    (lambda f: (f / VAE_FILE).write_bytes(b"cut"), "vae can't be loaded .* give a folder"),
    (lambda f: with_settings(f, latent_channels=8), "vae can't be loaded .* give a folder"),
    (lambda f: with_settings(f, _class_name="Foreign"), "holds no autoencoder of diffusers"),
    (lambda f: with_settings(f, latents_mean=[0.0] * 6), "latents channel by channel"),
    (lambda f: tiny_vae(in_channels=1).save_pretrained(f), "RGB; use one of 3 channels"),
]


@pytest.mark.parametrize(("damage", "words"), BROKEN_VAES)
def test_a_broken_vae_is_one_clear_sentence(folder, tmp_path, damage, words):
    copy = shutil.copytree(folder / "vae", tmp_path / "vae")
    damage(copy)
    with pytest.raises(SfvgenError, match=words) as caught:
        load_vae(str(copy))
    assert "\n" not in str(caught.value)


def replaced_by_t5(folder):
    sizes = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1}
    T5EncoderModel(T5Config(**sizes, num_heads=2)).save_pretrained(folder)


CLIP_FILE = "model.safetensors"
BROKEN_CLIPS = [
    (lambda f: shutil.rmtree(f), "there is no folder .*clip; give one that exists"),
    (lambda f: as_pickle(f, CLIP_FILE, "model.bin"), "only model.bin, which is a pickle"),
    (
        lambda f: without_a_weight(f, CLIP_FILE, "final_layer_norm.bias"),
        "lacks 1 of the weights of CLIPTextModel, such as final_layer_norm.bias",
    ),
    (lambda f: with_settings(f, intermediate_size=8), "clip can't be loaded"),
    (replaced_by_t5, r"holds no CLIP text encoder \(its model_type is t5\)"),
    (lambda f: (f / "tokenizer.json").unlink(), "holds no CLIP tokenizer; save it there"),
    (
        lambda f: build_tokenizer([TEXT, "other words"], 900, 20).save_pretrained(f),
        "but the text encoder knows .* give the tokenizer that it was trained with",
    ),
]


@pytest.mark.parametrize(("damage", "words"), BROKEN_CLIPS)
def test_a_broken_clip_is_one_clear_sentence(folder, tmp_path, damage, words):
    copy = shutil.copytree(folder / "clip", tmp_path / "clip")
    damage(copy)
    with pytest.raises(SfvgenError, match=words) as caught:
        load_text(str(copy))
    assert "\n" not in str(caught.value)


def test_a_subfolder_that_is_not_there_is_told(folder):
    with pytest.raises(SfvgenError, match="has no folder unet; correct pretrained or"):
        load_vae(str(folder), "unet")
    with pytest.raises(SfvgenError, match="holds no CLIP tokenizer in words"):
        load_text(str(folder), "clip", "words")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["autoencoder.latent_channels=4"], "leave out latent_channels: what is pretrained"),
        (["world_model.text.hidden_size=8"], "leave out hidden_size: what is pretrained"),
        (["autoencoder.pretrained=null"], "give optimisation to train it, or pretrained"),
        (["autoencoder.pretrained=null", "autoencoder.subfolder=vae"], "leave out subfolder"),
        (["world_model.text={train: false}"], "leave world_model.text.train out"),
        (["autoencoder.pretrained=/nowhere/vae"], "there is no folder /nowhere/vae"),
        (["world_model.unet=null", "world_model.transformer={patch_size: 3}"], "24 divides"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_before_any_work(
    folder, tmp_path, capsys, changes, words
):
    assert train(folder, tmp_path / "run", *changes) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------- the paper's base model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny folder in the layout of `text-to-video-ms-1.7b`."""
    folder = tmp_path_factory.mktemp("base") / "text-to-video"
    model = tiny_base_model()
    unet = type(model.unet).from_config({**model.unet.config, "in_channels": 4})
    TextToVideoSDPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
    ).save_pretrained(folder)
    return folder


OWN = ("autoencoder=null", "world_model.text.pretrained=null")
WINDOW = ("world_model.num_past_frames=2", "world_model.num_future_frames=3")


def test_training_goes_on_from_the_papers_base_model(folder, base, tmp_path):
    # Every sample reaches the weights of every plane.
    others = ("language", "language_and_actions", "none", "whole_sequence")
    actions = [f"world_model.conditions.{name}=0" for name in others]
    assert train(folder, tmp_path / "run", *OWN, *WINDOW, *actions, init_from=base) == 0
    model = load_world_model(tmp_path / "run/model")
    before = TextToVideoSDPipeline.from_pretrained(base)
    assert (model.config.num_past_frames, model.config.num_future_frames) == (2, 3)
    assert (model.config.image_size, model.action_size) == (64, 4)
    assert model.config.env_id == "sfvgen/TabletopReturn-v0"
    # Nobody knows what it had been trained on.
    assert model.config.data_steps is None
    assert model.scheduler.config.prediction_type == "epsilon"
    assert has_weights_of(model.vae, before.vae)
    assert has_weights_of(model.text_encoder, before.text_encoder)
    assert model.unet.conv_in.weight[:, 4:].abs().amax(dim=(0, 2, 3)).min() > 0
    # From its weights and not from others: two steps of Adam go no further than this.
    for name, value in before.unet.conv_in.state_dict().items():
        found = model.unet.conv_in.state_dict()[name]
        found = found[:, :4] if name == "weight" else found
        assert 0 < (found - value).abs().max() < 0.025
    # It loads again, to go on from.
    steps = "world_model.optimisation.steps=1"
    again = train(folder, tmp_path / "more", *OWN, steps, init_from=tmp_path / "run/model")
    assert again == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["world_model=null"], "which knows no actions yet; add world_model to the recipe"),
        ([*OWN, "inverse_dynamics=null"], "holds no inverse dynamics; add inverse_dynamics"),
        ([*OWN, "world_model.prediction=flow"], "has epsilon; leave prediction out"),
        (["autoencoder=null"], "world_model.text.pretrained, but the model of --init-from"),
    ],
)
def test_what_the_base_model_can_not_do_is_told_before_any_work(
    folder, base, tmp_path, capsys, changes, words
):
    changes = [*changes] if "autoencoder=null" in changes else ["autoencoder=null", *changes]
    assert train(folder, tmp_path / "run", *changes, init_from=base) == 2
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_only_an_autoencoder_kl_is_trained_on(folder, base, tmp_path, capsys):
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    counts = {"num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4}
    copy = shutil.copytree(base, tmp_path / "base", ignore=lambda *_: ["vae"])
    AutoencoderTiny(**blocks, **counts).save_pretrained(copy / "vae")
    index = json.loads((copy / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderTiny"]
    (copy / "model_index.json").write_text(json.dumps(index))
    how = "autoencoder={optimisation: {steps: 1, batch_size: 2, learning_rate: 0.001}}"
    text = "world_model.text.pretrained=null"
    assert train(folder, tmp_path / "run", how, text, init_from=copy) == 2
    assert "is a AutoencoderTiny, which is not trained here" in capsys.readouterr().err
