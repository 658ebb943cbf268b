"""What a loop has taught one model, given to another (task arithmetic, arXiv 2212.04089)."""

from pathlib import Path

import torch
from torch import nn

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.files import writing_errors
from sfvgen_planner.memory.adapter import Adapters
from sfvgen_planner.memory.adapter_files import trained_adapter, write_adapter
from sfvgen_planner.world_model import VideoWorldModel
from sfvgen_planner.world_model.checkpoint import MEMORY_FOLDER
from sfvgen_planner.world_model.models import load_models, save_checkpoint

_TRAINED_BY_A_LOOP = ("unet", "text_encoder")


def carry_over(looped: Path, before: Path, onto: Path, out: Path) -> Path:
    """Add what a loop changed in a model to the weights of another: `onto + (looped - before)`.

    A loop takes long, so a model that has learnt on slowly need not go through all of it again.
    The outcome recalls less than `looped`; a further loop from there makes it good.

    Args:
        looped: Checkpoint folder that a loop ended in.
        before: The one that this loop began with (all of them, if there were several).
        onto: Another of the same sizes and latents, such as `before` trained on.
        out: Folder for the outcome: the sum, with the heads of `onto` and the memory of `looped`.

    Returns:
        `out`.

    Raises:
        SfvgenError: `looped` has no memory or one of the others has, the models differ in size,
            words or latents, or `out` exists or can't be written.
    """
    require(not out.exists(), f"{out} exists already; choose another folder")
    memory = trained_adapter(looped)
    if memory is None:
        raise SfvgenError(f"{looped} has no memory; give a model that `sfvgen loop` made")
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
    for name in _TRAINED_BY_A_LOOP:
        _add_change(getattr(model, name), getattr(start, name), getattr(end, name))
    steps = [each.config.data_steps for each in (model, end, start)]
    known = None if None in steps else steps[0] + steps[1] - steps[2]
    model.register_to_config(data_steps=known)
    adapters = Adapters(model, memory.config)
    adapters.load(memory.tensors)
    tensors = {name: value.clone() for name, value in adapters.tensors().items()}
    adapters.detach()
    with writing_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
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
            value += new[name] - old[name]


def _check_fits(model: VideoWorldModel, folder: Path, other: VideoWorldModel, its: Path) -> None:
    """Refuse models whose weights or latents mean different things."""
    for name in _TRAINED_BY_A_LOOP:
        shapes, others = (_shapes(getattr(each, name)) for each in (model, other))
        require(
            shapes == others,
            f"the {name} of {its} has other sizes than that of {folder}; "
            "give models that were trained on from one another",
        )
    require(
        model.tokenizer.get_vocab() == other.tokenizer.get_vocab(),
        f"{its} knows other words than {folder}; give models that were trained on from one another",
    )
    require(
        _same_latents(model, other),
        f"{its} encodes frames otherwise than {folder}; give models that share an encoder",
    )


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def _same_latents(model: VideoWorldModel, other: VideoWorldModel) -> bool:
    """Whether two models encode frames alike; how they decode them may differ."""
    side = model.config.image_size
    if side != other.config.image_size:
        return False
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (1, 1, side, side, 3), generator=generator).to(torch.uint8)
    ours, theirs = model.encode(frames), other.encode(frames)
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-4)
