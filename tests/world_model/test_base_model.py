import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKL,
    AutoencoderKLWan,
    AutoencoderTiny,
    DDIMScheduler,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    VQModel,
)
from safetensors.torch import load_file, save_file

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import VideoWorldModel
from sfvgen_planner.world_model.conditioning import num_condition_planes
from sfvgen_planner.world_model.slow_learning import SlowBatch, SlowObjective
from sfvgen_planner.world_model.text import build_text_encoder, build_tokenizer

TEXT = "return the red cube"
ACTIONS = {"action_low": [-1.0, -2.0], "action_high": [1.0, 2.0]}
WIDE = 4 + num_condition_planes(2)


def autoencoder(latent_channels=4):
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=latent_channels,
    )


def text_encoder(tokenizer, hidden_size=16):
    torch.manual_seed(2)
    return build_text_encoder(tokenizer, hidden_size, num_layers=1, num_heads=2).eval()


def denoiser(in_channels=4):
    torch.manual_seed(3)
    return UNet3DConditionModel(
        sample_size=4,
        in_channels=in_channels,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(32, 32),
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=16,
    ).eval()


@pytest.fixture(scope="module")
def diffusers_pipeline():
    """A tiny model of `text-to-video-ms-1.7b`'s classes, with its scheduler's settings."""
    tokenizer = build_tokenizer([TEXT], 600, 16)
    return TextToVideoSDPipeline(
        vae=autoencoder().eval(),
        text_encoder=text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=denoiser(),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
    )


@pytest.fixture(scope="module")
def folder(diffusers_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "text-to-video"
    diffusers_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture(scope="module")
def base(folder):
    return VideoWorldModel.from_pretrained(folder, **ACTIONS)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def denoised(model, **planes):
    return model.denoise(
        noise(2, 4, 5, 4, 4), torch.tensor([7, 981]), 2, noise(2, 16, 16, seed=1), **planes
    )


def train_one_step(model):
    """Eq. 1-2 on a window of 2 past and 3 future frames."""
    objective = SlowObjective(model)
    optimiser = torch.optim.SGD(objective.parameters(), lr=0.1)
    window = noise(2, 4, 5, 4, 4, seed=3)
    batch = SlowBatch(
        latents=window,
        num_past=2,
        actions=torch.full((2, 3, 2), 0.5),
        token_ids=model.tokenize([TEXT, ""]),
        actions_given=torch.ones(2),
        context_given=torch.ones(2),
        noise=noise(2, 4, 5, 4, 4, seed=4),
        context_noise=torch.zeros_like(window),
        timesteps=torch.tensor([100, 700]),
    )
    loss = objective(*batch)
    loss.backward()
    optimiser.step()
    return objective(*batch).item() - loss.item()


@torch.no_grad()
def test_denoises_as_the_plain_unet_whatever_the_planes(base, diffusers_pipeline):
    wanted = diffusers_pipeline.unet(
        noise(2, 4, 5, 4, 4),
        torch.tensor([7, 981]),
        encoder_hidden_states=noise(2, 16, 16, seed=1),
    ).sample
    assert base.unet.config.in_channels == base.unet.conv_in.in_channels == WIDE
    for planes in (
        {},
        {"actions": noise(2, 3, 2, seed=2)},
        {"context_given": torch.zeros(2)},
    ):
        assert torch.allclose(denoised(base, **planes), wanted, atol=1e-5)


@torch.no_grad()
def test_samples_the_video_that_diffusers_samples(base, diffusers_pipeline):
    """From no context frame, DDIM over `denoise` is ModelScope's text-to-video sampling."""
    start = noise(1, 4, 3, 4, 4)
    wanted = diffusers_pipeline(
        TEXT,
        num_frames=3,
        height=32,
        width=32,
        num_inference_steps=3,
        guidance_scale=1.0,
        latents=start.clone(),
        output_type="np",
    ).frames
    latents = start
    text_states = base.encode_instructions([TEXT])
    base.scheduler.set_timesteps(3)
    for timestep in base.scheduler.timesteps:
        prediction = base.denoise(latents, timestep.expand(1), 0, text_states)
        latents = base.scheduler.step(prediction, timestep, latents).prev_sample
    assert np.abs(base.decode(latents) / 255 - wanted).max() < 1 / 255


def test_imagines_with_the_scheduler_of_the_folder(base):
    past = np.zeros((2, 4, 32, 32, 3), np.uint8)
    output = base(past, TEXT, np.zeros((2, 3, 2)), num_inference_steps=2)
    assert output.frames.shape == (2, 3, 32, 32, 3)
    assert isinstance(base.scheduler, DDIMScheduler)


def test_size_and_actions_have_defaults_and_can_be_given(folder, base):
    plain = VideoWorldModel.from_pretrained(folder, num_past_frames=2, num_future_frames=3)
    assert (plain.config.image_size, plain.action_size) == (4 * 8, 0)
    assert plain.unet.config.in_channels == 4 + num_condition_planes(0)
    assert (plain.config.num_past_frames, plain.config.num_future_frames) == (2, 3)
    space = VideoWorldModel.from_pretrained(
        folder, image_size=64, action_low=np.float32([-1, -2]), action_high=np.float32([1, 2])
    )
    assert space.latent_size == (4, 8, 8)
    assert (space.config.action_low, space.config.action_high) == ([-1, -2], [1, 2])
    assert base.config.action_high == [1.0, 2.0]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_training_reaches_the_new_planes_and_saving_keeps_them(folder, tmp_path, prediction_type):
    model = VideoWorldModel.from_pretrained(folder, **ACTIONS)
    model.scheduler.register_to_config(prediction_type=prediction_type)
    pretrained = model.unet.conv_in.weight[:, :4].clone()
    assert (model.unet.conv_in.weight[:, 4:] == 0).all()
    assert train_one_step(model) < 0
    grad = model.unet.conv_in.weight.grad
    assert grad.shape == (32, WIDE, 3, 3)
    # The mask, both actions and their sums, and every position plane.
    assert (grad.abs().amax(dim=(0, 2, 3)) > 0).all()
    assert (model.unet.conv_in.weight[:, :4] != pretrained).any()

    model.save_pretrained(tmp_path / "model")
    loaded = VideoWorldModel.from_pretrained(tmp_path / "model")
    assert loaded.unet.config.in_channels == WIDE
    assert loaded.config.action_low == [-1.0, -2.0]
    assert loaded.scheduler.config.prediction_type == prediction_type
    actions = noise(2, 3, 2, seed=2)
    with torch.no_grad():
        assert torch.equal(denoised(loaded, actions=actions), denoised(model, actions=actions))


def test_half_precision_variant_loads_by_name(diffusers_pipeline, tmp_path):
    diffusers_pipeline.save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(SfvgenError, match=r'only fp16 weights; load it with variant="fp16"'):
        VideoWorldModel.from_pretrained(tmp_path)
    assert VideoWorldModel.from_pretrained(tmp_path, variant="fp16").unet.dtype == torch.float32


def test_weights_named_as_in_2023_load(copy, diffusers_pipeline):
    """The published folder is older than today's names of attention and text layers."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old_name(name):
        for new in old if ".attentions." in name else ():
            name = name.replace(new, old[new])
        return name

    vae, text = copy / "vae/diffusion_pytorch_model.safetensors", copy / "text_encoder"
    renamed = {old_name(name): weight for name, weight in load_file(vae).items()}
    assert "encoder.mid_block.attentions.0.query.weight" in renamed
    save_file(renamed, vae)
    weights = load_file(text / "model.safetensors")
    renamed = {f"text_model.{name}": weight for name, weight in weights.items()}
    renamed["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(renamed, text / "model.safetensors", metadata={"format": "pt"})
    model = VideoWorldModel.from_pretrained(copy)
    for name in ("vae", "text_encoder"):
        wanted = getattr(diffusers_pipeline, name).state_dict()
        found = getattr(model, name).state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def small_vae(kind):
    if kind is AutoencoderKL:
        return autoencoder()
    if kind is AutoencoderTiny:
        return AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    if kind is AsymmetricAutoencoderKL:
        return AsymmetricAutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            down_block_out_channels=(8, 8),
            up_block_types=("UpDecoderBlock2D",) * 2,
            up_block_out_channels=(8, 8),
            norm_num_groups=4,
        )
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=8,
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", [AutoencoderKL, AutoencoderTiny, AsymmetricAutoencoderKL, VQModel])
def test_any_image_autoencoder_loads_in_its_place(folder, tmp_path, kind):
    torch.manual_seed(0)
    vae = small_vae(kind).eval()
    VideoWorldModel.from_pretrained(folder, vae=vae, image_size=32).save_pretrained(tmp_path / "m")
    model = VideoWorldModel.from_pretrained(tmp_path / "m")
    frames = np.random.default_rng(0).integers(0, 256, (1, 1, 32, 32, 3), dtype=np.uint8)
    image = torch.from_numpy(frames[0]).permute(0, 3, 1, 2) / 127.5 - 1
    encoded = vae.encode(image)
    raw = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
    latents = model.encode(frames)
    assert latents.shape[1:] == (4, 1, *model.latent_size[1:])
    assert torch.allclose(latents[:, :, 0], raw * vae.config.scaling_factor, atol=1e-4)
    wanted = (vae.decode(raw).sample.clamp(-1, 1) + 1) * 127.5
    difference = model.decode(latents)[0] - wanted.permute(0, 2, 3, 1).numpy()
    assert np.abs(difference).max() < 0.6
    assert model(frames, num_frames=1, num_inference_steps=1).frames.shape == frames.shape


@torch.no_grad()
def test_a_pretrained_clip_loads_in_its_place(folder, diffusers_pipeline, tmp_path):
    """The folder's own text encoder need not even be there."""
    tokenizer = build_tokenizer(["another corpus of words"], 700, 12)
    clip = text_encoder(tokenizer)
    shutil.copytree(folder, tmp_path / "base", ignore=lambda *_: ["text_encoder", "tokenizer"])
    with pytest.raises(SfvgenError, match="lacks the folder text_encoder"):
        VideoWorldModel.from_pretrained(tmp_path / "base")
    model = VideoWorldModel.from_pretrained(
        tmp_path / "base", text_encoder=clip, tokenizer=tokenizer
    )
    pipeline = TextToVideoSDPipeline(
        **{**diffusers_pipeline.components, "text_encoder": clip, "tokenizer": tokenizer}
    )
    wanted, _ = pipeline.encode_prompt(TEXT, "cpu", 1, do_classifier_free_guidance=False)
    assert wanted.shape == (1, 12, 16)
    assert torch.equal(model.encode_instructions([TEXT]), wanted)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"unet": denoiser(in_channels=9)},
            f"takes 9 input channels, which must be 4 .* or {WIDE}",
        ),
        ({"unet": denoiser(in_channels=WIDE + 2)}, f"takes {WIDE + 2} input channels"),
        ({"vae": autoencoder(latent_channels=8)}, "4 channels, but the vae makes 8"),
        (
            {"text_encoder": text_encoder(build_tokenizer([], 600, 16), hidden_size=32)},
            "reads text states of 16 numbers, but the text encoder makes 32",
        ),
        (
            {"vae": AutoencoderKLWan(base_dim=4, z_dim=4, num_res_blocks=1)},
            "AutoencoderKLWan, which does not encode single images",
        ),
        ({"image_size": 36}, "multiple of the vae's factor 8, got 36"),
        ({"action_high": [1.0]}, "action_low has 2 numbers and action_high 1"),
        ({"action_high": [np.inf, 2.0]}, "finite and below"),
        ({"action_high": [-1.0, 2.0]}, "finite and below"),
        ({"num_future_frames": 0}, "num_future_frames must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_one_clear_sentence(folder, arguments, words):
    with pytest.raises(SfvgenError, match=words) as caught:
        VideoWorldModel.from_pretrained(folder, **{**ACTIONS, **arguments})
    assert "\n" not in str(caught.value)


def test_unknown_image_size_is_asked_for(copy):
    config = json.loads((copy / "unet/config.json").read_text())
    (copy / "unet/config.json").write_text(json.dumps({**config, "sample_size": None}))
    with pytest.raises(SfvgenError, match="give image_size, a multiple of 8"):
        VideoWorldModel.from_pretrained(copy)
    assert VideoWorldModel.from_pretrained(copy, image_size=32).config.image_size == 32


@pytest.mark.parametrize("component", ["vae", "text_encoder", "unet"])
def test_pickled_weights_are_never_loaded(copy, diffusers_pipeline, component):
    weights = next((copy / component).glob("*.safetensors"))
    pickled = "pytorch_model.bin" if component == "text_encoder" else f"{weights.stem}.bin"
    weights.unlink()
    module = getattr(diffusers_pipeline, component)
    torch.save(module.state_dict(), copy / component / pickled)
    with pytest.raises(SfvgenError, match=f"{component} holds no safetensors .*{pickled}"):
        VideoWorldModel.from_pretrained(copy)
    VideoWorldModel.from_pretrained(copy, **{component: module})


def test_missing_weights_are_told(copy):
    next((copy / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(SfvgenError, match="unet holds no safetensors weights;"):
        VideoWorldModel.from_pretrained(copy)
