"""What a loop has taught one model, given to another (task arithmetic, arXiv 2212.04089)."""

from pathlib import Path

import torch
from torch import nn

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.files import prepare_folder, writing_errors
from sfvgen_planner.memory.adapter import Adapters
from sfvgen_planner.memory.adapter_files import trained_adapter, write_adapter
from sfvgen_planner.memory.episodic import EpisodicMemory
from sfvgen_planner.world_model import VideoWorldModel
from sfvgen_planner.world_model.checkpoint import MEMORY_FOLDER
from sfvgen_planner.world_model.models import load_models, save_checkpoint
from sfvgen_planner.world_model.slow_learning import prediction_of

_TRAINED_BY_A_LOOP = ("unet", "text_encoder")
_OF_THE_MODEL = (
    "num_past_frames",
    "num_future_frames",
    "image_size",
    "action_low",
    "action_high",
    "frame_skip",
)
_OF_THE_NOISE = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
)
_OF_THE_TEXT_ENCODER = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
)


def carry_over(looped: Path, before: Path, onto: Path, out: Path) -> Path:
    """Add what a loop changed in a model to the weights of another: `onto + (looped - before)`.

    A loop takes long, so a model that has learnt on slowly need not go through all of it again.
    The outcome recalls less than `looped`; a further loop from there makes it good.

    Args:
        looped: Checkpoint folder that a loop ended in.
        before: The one that this loop began with; after several loops, the first of them.
        onto: Another of the same settings, words and encoder, such as `before` trained on.
        out: Folder for the outcome: the sum, with the decoder and the heads of `onto` and the
            memory of `looped`.

    Returns:
        `out`.

    Raises:
        SfvgenError: `looped` has no memory or one of the others has, the models differ in a
            setting, in words or in the encoder, or `out` exists, is inside one of them or can't be
            written.
    """
    require(not out.exists(), f"{out} exists already; choose another folder")
    for folder in (looped, before, onto):
        require(
            not out.resolve().is_relative_to(folder.resolve()),
            f"{out} is inside the model {folder}; choose a folder outside",
        )
    memory = trained_adapter(looped)
    if memory is None:
        raise SfvgenError(
            f"{looped} has no memory; give the folder `model` of a run of `sfvgen loop`"
        )
    for folder in (before, onto):
        require(
            trained_adapter(folder) is None,
            f"{folder} has been through a loop itself; give a model from before its loop",
        )
    start, end = (VideoWorldModel.from_pretrained(folder) for folder in (before, looped))
    models = load_models(onto)
    model = models.world_model
    for folder, other in ((before, start), (looped, end)):
        _check_fits(model, onto, other, folder)
    # Refuses one that is another model's.
    EpisodicMemory.from_pretrained(end, looped).detach()
    prepare_folder(out.parent)
    for name in _TRAINED_BY_A_LOOP:
        _add_change(getattr(model, name), getattr(start, name), getattr(end, name))
    steps = [each.config.data_steps for each in (model, end, start)]
    known = None if None in steps else steps[0] + steps[1] - steps[2]
    model.register_to_config(data_steps=known)
    adapters, tensors = Adapters(model, memory.config), memory.tensors
    adapters.detach()
    with writing_errors(out):
        save_checkpoint(
            models, out, lambda folder: write_adapter(folder / MEMORY_FOLDER, adapters, tensors)
        )
    return out


@torch.no_grad()
def _add_change(module: nn.Module, before: nn.Module, after: nn.Module) -> None:
    """`module += after - before`, in place."""
    old, new = before.state_dict(), after.state_dict()
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            # Exact, so that `before` itself becomes `after`.
            value.copy_(value.double() + (new[name].double() - old[name].double()))


def _check_fits(model: VideoWorldModel, folder: Path, other: VideoWorldModel, its: Path) -> None:
    """Refuse models whose weights or latents mean different things."""
    advice = "give models that were trained on from one another"
    ours, theirs = _settings(model), _settings(other)
    for name in (*ours, *theirs):
        require(
            ours.get(name) == theirs.get(name),
            f"{name} is {theirs.get(name)} in {its} and {ours.get(name)} in {folder}; {advice}",
        )
    require(
        model.tokenizer.get_vocab() == other.tokenizer.get_vocab(),
        f"{its} knows other words than {folder}; {advice}",
    )
    require(
        _same_latents(model, other),
        f"{its} encodes frames otherwise than {folder}; give models that share an encoder",
    )


def _settings(model: VideoWorldModel) -> dict[str, object]:
    """All that decides what the weights that a loop trains mean, by name."""
    text, noise = model.text_encoder.config, model.scheduler.config
    return {
        **{name: model.config[name] for name in _OF_THE_MODEL},
        "prediction": prediction_of(model.scheduler),
        **{f"scheduler.{name}": noise.get(name) for name in _OF_THE_NOISE},
        **{f"text_encoder.{name}": getattr(text, name) for name in _OF_THE_TEXT_ENCODER},
        "unet": type(model.unet).__name__,
        **{f"unet.{k}": value for k, value in model.unet.config.items() if k[:1] != "_"},
    }


def _same_latents(model: VideoWorldModel, other: VideoWorldModel) -> bool:
    """Whether two models encode frames alike; how they decode them may differ."""
    side = model.config.image_size
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (1, 1, side, side, 3), generator=generator).to(torch.uint8)
    ours, theirs = model.encode(frames), other.encode(frames)
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-4)
