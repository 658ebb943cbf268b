"""Components as others have trained them: any image VAE of diffusers, any CLIP of transformers."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, ModelMixin
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.world_model.base_model import latent_geometry
from sfvgen_planner.world_model.checkpoint import check_weights, loading_errors, quiet_libraries
from sfvgen_planner.world_model.hub import local_folder

_ADVICE = "give a folder, or an id on the Hugging Face Hub, that holds safetensors weights"


def load_vae(source: str, subfolder: str | None = None) -> Any:
    """An image autoencoder of diffusers, in single precision.

    Args:
        source: Its folder, or its id on the Hugging Face Hub (`user/name@revision`).
        subfolder: Where in `source` it is.

    Raises:
        SfvgenError: There is none, the Hub can't be reached, its weights are not whole or not
            safetensors, or it does not encode single RGB images.
    """
    folder = _weights_folder(local_folder(source, [subfolder or ""]), source, subfolder)
    with loading_errors(folder, _ADVICE), quiet_libraries():
        # Every model of diffusers has the same form of config.
        name = str(AutoencoderKL.load_config(folder).get("_class_name"))
        kind: Any = getattr(diffusers, name, None)
        require(
            isinstance(kind, type) and issubclass(kind, ModelMixin),
            f"{folder} holds no autoencoder of diffusers; give the folder of one such as "
            "AutoencoderKL, and the subfolder where it is part of a pipeline",
        )
        vae = load_whole(kind, folder)
    latent_geometry(vae)
    return vae


def load_text(
    source: str, subfolder: str | None = None, tokenizer_subfolder: str | None = None
) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """A CLIP text encoder, in single precision, and its tokenizer.

    Args:
        source: Their folder, or their id on the Hugging Face Hub (`user/name@revision`); a whole
            CLIP will do.
        subfolder: Where in `source` the text encoder is.
        tokenizer_subfolder: Where in `source` the tokenizer is.

    Raises:
        SfvgenError: One of them is not there, is no CLIP or does not fit the other, the Hub can't
            be reached, or the weights are not whole or not safetensors.
    """
    root = local_folder(source, [subfolder or "", tokenizer_subfolder or ""])
    folder = _weights_folder(root, source, subfolder)
    with loading_errors(folder, _ADVICE), quiet_libraries():
        config, _ = CLIPTextConfig.get_config_dict(folder)
        kind = config.get("model_type")
        require(
            kind in ("clip", "clip_text_model"),
            f"{folder} holds no CLIP text encoder (its model_type is {kind}); give the folder of "
            "one, and the subfolder where it is part of a pipeline",
        )
        # Frozen, it must give the same states in training too.
        encoder = load_whole(CLIPTextModel, folder, attention_dropout=0.0)
        tokenizer = CLIPTokenizer.from_pretrained(root, subfolder=tokenizer_subfolder or "")
    inside = "" if tokenizer_subfolder is None else f" in {tokenizer_subfolder}"
    require(
        not is_empty(tokenizer),
        f"{source} holds no CLIP tokenizer{inside}; save it there, or give its tokenizer_subfolder",
    )
    require(
        len(tokenizer) <= encoder.config.vocab_size,
        f"the tokenizer of {source} has {len(tokenizer)} tokens, but the text encoder knows "
        f"{encoder.config.vocab_size}; give the tokenizer that it was trained with",
    )
    return encoder, tokenizer


def is_empty(tokenizer: CLIPTokenizer) -> bool:
    """Whether it knows no words: transformers makes one so where there are no files of one."""
    return len(tokenizer) <= len(tokenizer.all_special_ids)


def _weights_folder(root: Path, source: str, subfolder: str | None) -> Path:
    """The folder of a component in `root`; refuses one without weights before it is loaded."""
    folder = root / (subfolder or "")
    require(
        folder.is_dir(),
        f"there is no folder {source}; give one that exists, or an id on the Hugging Face Hub"
        if subfolder is None
        else f"{source} has no folder {subfolder}; correct pretrained or subfolder",
    )
    check_weights(folder)
    return folder


def load_whole(kind: Any, folder: Path, **settings: Any) -> Any:
    """A model none of whose weights is missing: the libraries would make these up.

    Args:
        kind: Its class, of diffusers or transformers.
        folder: Holds its config and its weights.
        **settings: Of `kind.from_pretrained`; single precision unless `dtype` says otherwise.

    Raises:
        SfvgenError: The weights are not whole.
    """
    settings.setdefault("dtype", torch.float32)
    model, found = kind.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True, **settings
    )
    missing = sorted(found["missing_keys"])
    if missing:
        raise SfvgenError(
            f"{folder} lacks {len(missing)} of the weights of {kind.__name__}, such as "
            f"{missing[0]}; save or copy it again"
        )
    return model
