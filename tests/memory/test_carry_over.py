"""What a loop has taught, given to another model: arithmetic on the files, and what is refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sfvgen_planner.cli.main import main
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.memory import EpisodicMemory
from sfvgen_planner.memory.adapter import Adapters
from sfvgen_planner.memory.adapter_files import write_adapter
from sfvgen_planner.memory.carry_over import carry_over
from sfvgen_planner.memory.config import memory_variant
from sfvgen_planner.world_model import load_world_model, tiny_world_model
from sfvgen_planner.world_model.checkpoint import check_folder
from sfvgen_planner.world_model.models import load_models, save_checkpoint
from sfvgen_planner.world_model.slow_learning import build_scheduler
from sfvgen_planner.world_model.text import build_tokenizer
from tests.test_full_disk import room_for

CONFIG = replace(memory_variant("ours"), rank=2, num_time_codes=4, num_noise_draws=1)
FRAMES = np.random.default_rng(0).integers(0, 256, (1, 4, 64, 64, 3), np.uint8)


@torch.no_grad()
def shake(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def changed(source, folder, change, with_memory=False):
    """A checkpoint like `source` but for what `change` does to its models."""
    models = load_models(source)
    model = models.world_model
    change(models)
    write_more = None
    if with_memory:
        adapters = Adapters(model, CONFIG)
        for parameter in adapters.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        tensors = {name: value.clone() for name, value in adapters.tensors().items()}
        adapters.detach()

        def write_more(temporary):
            write_adapter(temporary / "memory", adapters, tensors)

    save_checkpoint(models, folder, write_more)
    return folder


def trained(seed, data_steps):
    """Changes all that training may change but the encoder."""

    def change(models):
        model = models.world_model
        model.register_to_config(data_steps=data_steps)
        parts = (model.unet, model.text_encoder, model.vae.decoder, models.inverse_dynamics)
        for index, module in enumerate(parts):
            shake(module, 10 * seed + index)

    return change


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, tmp_path_factory):
    """A model, a loop's outcome from there, and the model trained on."""
    folder = tmp_path_factory.mktemp("carry_over")
    changed(tiny_checkpoint, folder / "before", trained(0, 100))
    changed(folder / "before", folder / "looped", trained(1, 130), with_memory=True)
    changed(folder / "before", folder / "onto", trained(2, 250))
    carry_over(*(folder / name for name in ("looped", "before", "onto", "out")))
    return folder


def weights(checkpoint, part):
    """Of a part of a checkpoint, as its files have them."""
    files = sorted((checkpoint / part).glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_every_weight_is_the_sum(folder, part):
    before, looped, onto, out = (
        weights(folder / name, part) for name in ("before", "looped", "onto", "out")
    )
    assert out.keys() == onto.keys()
    for name, value in out.items():
        assert value.dtype == torch.float16
        wanted = onto[name].double() + looped[name].double() - before[name].double()
        torch.testing.assert_close(value.double(), wanted, rtol=2**-11, atol=2**-25)
    # Each of the three counts.
    changes = [
        sum((out[name].float() - other[name].float()).abs().sum() for name in out)
        for other in (before, looped, onto)
    ]
    assert min(changes) > 1


def test_the_rest_is_of_the_model_that_it_is_added_to(folder):
    for part in ("vae", "inverse_dynamics"):
        out, onto, looped = (weights(folder / x, part) for x in ("out", "onto", "looped"))
        assert out.keys() == onto.keys()
        assert all(torch.equal(value, onto[name]) for name, value in out.items())
        assert any(not torch.equal(value, looped[name]) for name, value in out.items())
    check_folder(folder / "out")
    assert "| `memory` |" in (folder / "out/README.md").read_text()


def test_the_memory_is_that_of_the_loop_and_fits(folder):
    out, looped = (weights(folder / name, "memory") for name in ("out", "looped"))
    assert out.keys() == looped.keys()
    assert all(torch.equal(value, looped[name]) for name, value in out.items())
    memory = EpisodicMemory.from_pretrained(load_world_model(folder / "out"))
    assert memory.config == CONFIG
    memory.write(FRAMES[0, :1], FRAMES[0, 1:])
    # What is recorded is the sum's, not the loop's or nothing.
    for name in ("looped", "onto"):
        with pytest.raises(SfvgenError, match="trained with other slow weights"):
            EpisodicMemory.from_pretrained(load_world_model(folder / name), folder / "out")


def imagined(checkpoint):
    """Latents of the frames after some, under an instruction."""
    generator = torch.Generator().manual_seed(0)
    model = load_world_model(checkpoint)
    return model(FRAMES, "put the red cube", generator=generator, output_type="latent").latents


def test_onto_its_own_beginning_it_is_the_loops_model(folder, tmp_path):
    out = carry_over(folder / "looped", folder / "before", folder / "before", tmp_path / "out")
    for part in ("unet", "text_encoder", "memory"):
        looped = weights(folder / "looped", part)
        assert all(torch.equal(value, looped[name]) for name, value in weights(out, part).items())
    # The decoders differ, which a loop does not train.
    assert torch.equal(imagined(out), imagined(folder / "looped"))
    assert not torch.equal(imagined(out), imagined(folder / "before"))


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [((100, 130, 250), 280), ((None, 130, 250), None), ((100, None, 250), None)],
)
def test_the_steps_of_data_are_summed_too(folder, tmp_path, steps, wanted):
    for name, value in zip(("before", "looped", "onto"), steps, strict=True):
        shutil.copytree(folder / name, tmp_path / name)
        model = load_world_model(tmp_path / name)
        model.register_to_config(data_steps=value)
        model.save_pretrained(tmp_path / name)
    out = carry_over(*(tmp_path / name for name in ("looped", "before", "onto", "out")))
    assert load_world_model(out).config.data_steps == wanted


def command(looped, before, onto, out):
    arguments = {"looped": looped, "before": before, "onto": onto, "out": out}
    return main(["carry-over", *(f"--{name}={value}" for name, value in arguments.items())])


def refused(capsys, words, *arguments):
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("before", "before", "onto", "new"), "before has no memory; give the folder `model`"),
        (("looped", "looped", "onto", "new"), "looped has been through a loop itself"),
        (("looped", "before", "looped", "new"), "looped has been through a loop itself"),
        (("looped", "before", "onto", "onto"), "onto exists already; choose another folder"),
        (("looped", "before", "onto", "looped/new"), "is inside the model"),
        (("looped", "nowhere", "onto", "new"), "no model called"),
        (("looped", "before", "onto", "onto/manifest.json/new"), "is inside the model"),
    ],
)
def test_models_and_folders_that_make_no_sense_are_refused(folder, capsys, names, words):
    before = sorted(folder.rglob("*"))
    refused(capsys, words, *(folder / name for name in names))
    assert sorted(folder.rglob("*")) == before


def set_in(*path, **settings):
    def change(models):
        part = models.world_model
        for name in path:
            part = getattr(part, name)
        part.register_to_config(**settings)

    return change


def with_scheduler(models):
    models.world_model.scheduler = build_scheduler("v_prediction")


def with_other_words(models):
    models.world_model.tokenizer = build_tokenizer(["put the red tube on the blue pad"], 600, 16)


def with_other_encoder(models):
    shake(models.world_model.vae.encoder, 5)


def with_other_scale(models):
    models.world_model.vae.register_to_config(scaling_factor=0.5)


def of_other_sizes(models):
    models.world_model = tiny_world_model(denoiser="transformer")


MISFITS = [
    (set_in(num_past_frames=3), "num_past_frames is 4 in", "and 3 in"),
    (set_in(num_future_frames=3), "num_future_frames is 8 in", "and 3 in"),
    (set_in(action_high=[2.0] * 4), "action_high is [1.0, ", "and [2.0, "),
    (set_in(frame_skip=2), "frame_skip is 1 in", "and 2 in"),
    (set_in("unet", mid_block_scale_factor=2), "unet.mid_block_scale_factor is 1 in", "and 2 in"),
    (with_scheduler, "prediction is flow in", "and v_prediction in"),
    (of_other_sizes, "unet is UNet3DConditionModel in", "and LatteTransformer3DModel in"),
    (with_other_words, "knows other words than", "give models that were trained on"),
    (with_other_encoder, "encodes frames otherwise than", "give models that share an encoder"),
    (with_other_scale, "encodes frames otherwise than", "give models that share an encoder"),
]


@pytest.mark.parametrize(("change", "words", "more"), MISFITS)
def test_another_kind_of_model_is_refused(folder, tmp_path, capsys, change, words, more):
    other = changed(folder / "onto", tmp_path / "other", change)
    refused(capsys, words, folder / "looped", folder / "before", other, tmp_path / "new/out")
    with pytest.raises(SfvgenError) as caught:
        carry_over(folder / "looped", folder / "before", other, tmp_path / "new/out")
    assert more in str(caught.value)
    assert list(tmp_path.iterdir()) == [other]


def test_a_memory_of_other_weights_is_refused(folder, tmp_path, capsys):
    shutil.copytree(folder / "looped", tmp_path / "mixed")
    load_world_model(folder / "onto").save_pretrained(tmp_path / "mixed")
    words = "was trained with other slow weights than this model's"
    refused(capsys, words, tmp_path / "mixed", folder / "before", folder / "onto", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "mixed"]


@pytest.mark.parametrize("num_bytes", [400, 10_000, 60_000])
def test_a_full_disk_is_told_and_leaves_nothing(folder, tmp_path, capsys, num_bytes):
    models = [folder / name for name in ("looped", "before", "onto")]
    with room_for(num_bytes):
        refused(capsys, "cannot write", *models, tmp_path / "new/out")
    assert list((tmp_path / "new").iterdir()) == []
    assert command(*models, tmp_path / "new/out") == 0
    assert "go on with sfvgen loop --init-from" in capsys.readouterr().out


def test_what_a_killed_run_has_left_is_in_nobodys_way(folder, tmp_path):
    (tmp_path / ".out.tmp/unet").mkdir(parents=True)
    save_file({"cut": torch.ones(1)}, tmp_path / ".out.tmp/unet/cut.safetensors")
    carry_over(*(folder / name for name in ("looped", "before", "onto")), tmp_path / "out")
    assert weights(tmp_path / "out", "unet").keys() == weights(folder / "out", "unet").keys()
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_folder_that_can_not_be_written_is_told(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    models = [folder / name for name in ("looped", "before", "onto")]
    refused(capsys, "cannot write to the output folder", *models, tmp_path / "file/out")
