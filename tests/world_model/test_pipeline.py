import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import VideoWorldModel, tiny_world_model


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def past():
    return np.random.default_rng(0).integers(0, 256, (2, 4, 64, 64, 3), dtype=np.uint8)


def test_imagines_any_number_of_frames(model, past):
    output = model(past, "return the red cube", num_frames=11, generator=seeded())
    assert output.frames.shape == (2, 11, 64, 64, 3)
    assert output.frames.dtype == np.uint8
    assert output.latents.shape == (2, 4, 11, 4, 4)


def test_is_a_diffusers_pipeline_of_the_modelscope_layout(model):
    assert isinstance(model, DiffusionPipeline)
    assert set(model.components) >= {"vae", "text_encoder", "tokenizer", "unet", "scheduler"}


def test_same_seed_same_video_and_latents_decode_to_it(model, past):
    first = model(past, num_frames=3, generator=seeded())
    second = model(past, num_frames=3, generator=seeded(), output_type="latent")
    assert second.frames is None
    assert torch.equal(first.latents, second.latents)
    assert np.array_equal(first.frames, model.decode(second.latents))


def test_latent_past_equals_pixel_past(model, past):
    pixels = model(past, num_frames=3, generator=seeded())
    latents = model(model.encode(past), num_frames=3, generator=seeded())
    assert torch.equal(pixels.latents, latents.latents)


def test_every_condition_changes_the_video(model, past):
    plain = model(past, num_frames=4, generator=seeded()).latents
    actions = np.full((2, 4, 4), 0.5, np.float32)
    others = [
        model(past, "return the red cube", num_frames=4, generator=seeded()).latents,
        model(past, actions=actions, generator=seeded()).latents,
        model(past, actions=-actions, generator=seeded()).latents,
        model(past[:, ::-1], num_frames=4, generator=seeded()).latents,
    ]
    videos = [plain, *others]
    for i, one in enumerate(videos):
        for other in videos[i + 1 :]:
            assert (one - other).abs().max() > 1e-4


def test_a_sample_does_not_depend_on_its_neighbours_in_the_batch(model, past):
    actions = np.random.default_rng(1).uniform(-1, 1, (2, 4, 4))
    texts = ["return the red cube", None]
    batch = model(past, texts, actions, generator=seeded(), common_noise=True).latents
    for i in range(2):
        alone = model(past[i : i + 1], texts[i], actions[i : i + 1], generator=seeded()).latents
        assert torch.allclose(batch[i], alone[0], atol=1e-4)


def test_a_generator_for_each_sample_makes_it_independent_of_the_batch(model, past):
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    batch = model(past, num_frames=2, generator=generators).latents
    for index, seed in enumerate((0, 1)):
        generator = torch.Generator().manual_seed(seed)
        alone = model(past[index : index + 1], num_frames=2, generator=generator).latents
        assert torch.allclose(batch[index], alone[0], atol=1e-4)
    for arguments in ({"generator": generators[:1]}, {"common_noise": True}):
        with pytest.raises(SfvgenError, match="generators"):
            model(past, **{"generator": generators, **arguments})


@pytest.mark.parametrize("common_noise", [False, True])
def test_samples_that_share_a_generator_get_what_it_gives_them_alone(model, past, common_noise):
    def imagine(rows):
        return model(
            past[np.repeat(rows, 3)],
            num_frames=9,  # a second chunk
            num_inference_steps=1,
            generator=[torch.Generator().manual_seed(row) for row in rows],
            common_noise=common_noise,
            samples_per_generator=3,
        ).latents

    together = imagine([0, 1])
    for row in (0, 1):
        share = together[3 * row : 3 * row + 3]
        alone = model(
            past[[row] * 3],
            num_frames=9,
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(row),
            common_noise=common_noise,
        ).latents
        assert torch.allclose(share, alone, atol=1e-4)
        assert ((share[0] - share[1]).abs().max() < 1e-4) == common_noise
    with pytest.raises(SfvgenError, match="samples_per_generator=2"):
        model(past, generator=[seeded(), seeded()], samples_per_generator=2)


def test_common_noise_makes_equal_candidates_equal(model, past):
    same = np.repeat(past[:1], 2, axis=0)
    video = model(same, num_frames=3, generator=seeded(), common_noise=True).latents
    assert torch.allclose(video[0], video[1], atol=1e-5)
    video = model(same, num_frames=3, generator=seeded()).latents
    assert (video[0] - video[1]).abs().max() > 0.1


def test_chunks_continue_from_the_model_s_own_output(model, past):
    long = model(past, num_frames=12, generator=seeded(), output_type="latent").latents
    generator = seeded()
    first = model(past, generator=generator, output_type="latent").latents
    second = model(first, num_frames=4, generator=generator, output_type="latent").latents
    assert torch.allclose(long, torch.cat([first, second], dim=2), atol=1e-5)


def test_a_chunk_fills_the_window_whatever_its_past(model, past):
    """f_p + f_g = 4 + 8 frames: after a single past frame, a chunk is 11 frames long."""
    assert model(past, generator=seeded(), output_type="latent").latents.shape[2] == 8
    first = model(past[:, -1:], generator=seeded(), output_type="latent").latents
    assert first.shape[2] == 11
    generator = seeded()
    long = model(past[:, -1:], num_frames=12, generator=generator, output_type="latent").latents
    assert torch.equal(long[:, :, :11], first)


def test_short_past_counts_as_one_frame(model, past):
    three = model(past[:, 1:], num_frames=3, generator=seeded()).latents
    one = model(past[:, -1:], num_frames=3, generator=seeded()).latents
    assert torch.equal(three, one)


def test_euler_steps_integrate_a_constant_velocity_exactly(model, past, monkeypatch):
    """With velocity `noise - x0` for a fixed x0, any number of steps must land on x0."""
    x0 = torch.full((2, 4, 5, 4, 4), 0.7)
    for steps in (1, 3):
        noise = torch.randn(2, 4, 5, 4, 4, generator=seeded())

        def velocity(window, timesteps, num_past, text_states, actions=None, noise=noise):
            return torch.cat([window[:, :, :num_past], noise - x0], dim=2)

        monkeypatch.setattr(model, "denoise", velocity)
        output = model(past, num_frames=5, num_inference_steps=steps, generator=seeded())
        assert torch.allclose(output.latents, x0, atol=1e-4)


def test_guidance_extrapolates_from_no_instruction_to_the_instruction(model, past, monkeypatch):
    """One Euler step from pure noise lands on noise - velocity, so guidance is linear in it."""
    arguments = {"num_frames": 2, "num_inference_steps": 1, "output_type": "latent"}
    text = "return the red cube"
    plain = model(past, generator=seeded(), **arguments).latents
    told = model(past, text, generator=seeded(), **arguments).latents
    guided = model(past, text, guidance_scale=3.0, generator=seeded(), **arguments).latents
    assert torch.allclose(guided, plain + 3 * (told - plain), atol=1e-4)
    untold = model(past, guidance_scale=3.0, generator=seeded(), **arguments).latents
    assert torch.equal(untold, plain)


def test_works_with_a_ddpm_family_scheduler(past):
    model = tiny_world_model()
    model.register_modules(scheduler=DDIMScheduler(num_train_timesteps=1000))
    assert model(past, num_frames=2, generator=seeded()).frames.shape == (2, 2, 64, 64, 3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_euler_steps_are_those_of_ddim(past):
    """One differential equation: Euler's noisy latents are larger, and scaled for the denoiser."""
    schedule = {"beta_schedule": "scaled_linear", "timestep_spacing": "leading"}
    ddim = DDIMScheduler(clip_sample=False, **schedule)
    model, videos = tiny_world_model(), []
    for scheduler in (ddim, EulerDiscreteScheduler.from_config(ddim.config)):
        model.register_modules(scheduler=scheduler)
        videos.append(model(past, num_frames=2, generator=seeded()).latents)
    assert torch.allclose(*videos, atol=1e-4)


def test_encode_and_decode_are_each_other_s_scaling(model, past):
    latents = model.encode(past)
    model.vae.register_to_config(shift_factor=0.5, scaling_factor=2.0)
    try:
        rescaled = model.encode(past)
        assert torch.allclose(rescaled, (latents / 0.18215 - 0.5) * 2, atol=1e-4)
        decoded = model.decode(rescaled)
    finally:
        model.vae.register_to_config(shift_factor=None, scaling_factor=0.18215)
    assert np.abs(decoded.astype(int) - model.decode(latents)).max() <= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"past": np.zeros((1, 4, 32, 32, 3), np.uint8)}, "64, 64, 3"),
        ({"past": np.zeros((1, 4, 64, 64, 3), np.float32)}, "uint8|latents"),
        ({"past": torch.zeros(1, 9, 4, 4, 4)}, r"\(batch, 4, frames, 4, 4\)"),
        ({"past": torch.zeros(1, 4, 4, 2, 2)}, r"\(batch, 4, frames, 4, 4\)"),
        ({"past": torch.zeros(1, 4, 0, 4, 4)}, "at least one frame"),
        ({"generator": 3}, "torch.Generator"),
        ({"actions": np.zeros((1, 4, 3))}, "4 numbers"),
        ({"actions": np.full((1, 4, 4), np.nan)}, "finite"),
        ({"actions": np.full((1, 4, 4), 1.5)}, "between"),
        ({"actions": np.zeros((3, 4, 4))}, r"\(1, num_frames, 4\)"),
        ({"actions": np.zeros((1, 4, 4)), "num_frames": 5}, "5 actions"),
        ({"num_frames": 0}, "at least 1"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"guidance_scale": "a"}, "guidance_scale must be finite and at least 1, got 'a'"),
        ({"instruction": "left", "guidance_scale": np.inf}, "guidance_scale"),
        ({"output_type": "pil"}, "output_type"),
        ({"instruction": ["a", "b"]}, "1 instructions"),
        ({"instruction": 3}, "a text or None, got 3"),
    ],
)
def test_bad_input_is_one_clear_sentence(model, change, words):
    arguments = {"past": np.zeros((1, 4, 64, 64, 3), np.uint8), **change}
    with pytest.raises(SfvgenError, match=words) as caught:
        model(**arguments)
    assert "\n" not in str(caught.value)


def test_latents_of_another_size_are_not_decoded(model):
    with pytest.raises(SfvgenError, match=r"\(batch, 4, frames, 4, 4\)"):
        model.decode(torch.zeros(1, 3, 1, 4, 4))


def test_an_instruction_that_is_cut_is_told_once(caplog):
    model = tiny_world_model()
    limit = model.text_encoder.config.max_position_embeddings
    words = ["cube"]
    while len(model.tokenizer(" ".join(words), verbose=False).input_ids) < limit:
        words.append("cube")
    fits, cut = " ".join(words), " ".join([*words, "cube"])
    for _ in range(2):
        ids = model.tokenize([fits, cut, ""])
    assert ids.shape == (3, limit)
    (record,) = caplog.records
    told = record.getMessage()
    assert repr(cut) in told
    assert f"has {limit + 1} tokens, but the model reads no more than {limit}" in told


def test_actions_are_scaled_by_the_environment_s_bounds():
    model = tiny_world_model(action_size=2)
    model.register_to_config(action_low=[0.0, -2.0], action_high=[10.0, 2.0])
    assert torch.allclose(
        model.normalise_actions(np.array([[5.0, 1.0], [0.0, -2.0]])),
        torch.tensor([[0.0, 0.5], [-1.0, -1.0]]),
    )
    assert isinstance(model, VideoWorldModel)


@pytest.mark.parametrize("num_inference_steps", [1, 2])
def test_gradients_of_the_latents_reach_the_actions(past, num_inference_steps):
    model = tiny_world_model()
    directions = seeded()

    def cost(actions):
        output = model(
            past,
            actions=actions,
            num_inference_steps=num_inference_steps,
            generator=seeded(),
            output_type="latent",
        )
        return output.latents.square().mean()

    actions = 0.5 * torch.rand(len(past), 10, 4, generator=directions)
    actions.requires_grad_()
    (gradient,) = torch.autograd.grad(cost(actions), actions)
    assert gradient[:, 8:].abs().max() > 0  # The second chunk's, and the first's through it.
    along = torch.nn.functional.normalize(gradient, dim=None)
    with torch.no_grad():
        difference = (cost(actions + 0.05 * along) - cost(actions - 0.05 * along)) / 0.1
    assert difference == pytest.approx(gradient.norm().item(), rel=0.05)
    assert not cost(actions.detach()).requires_grad
    model.compile(backend=lambda graph, inputs: pytest.fail("compiled"))
    assert cost(actions).requires_grad
