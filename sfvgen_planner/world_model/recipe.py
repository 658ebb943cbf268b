"""Training recipes: the YAML files under `recipes/`, read into validated models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sfvgen_planner.data.recipe import DataRecipe, parsed_yaml, read_recipe, validated
from sfvgen_planner.errors import require

Prediction = Literal["flow", "epsilon", "v_prediction"]
MixedPrecision = Annotated[
    Literal["no", "bf16"],
    # YAML reads a bare `no` as false.
    BeforeValidator(lambda value: "no" if value is False else value),
]
"""What passes are computed in where it is safe: bfloat16, or single precision like the rest."""
_PLACES = {"subfolder", "tokenizer_subfolder"}
_COMPILE = "torch.compile on a GPU: a minute or two before the first step, then faster."


Channels = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
# Diffusers' UNet has no other number.
_UNET_NORM_GROUPS = 32


def _check_divisible(channels: tuple[int, ...], number: int, what: str) -> None:
    if any(count % number for count in channels):
        raise ValueError(
            f"each of block_out_channels must be a multiple of {number} ({what}), got "
            f"{list(channels)}"
        )


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Optimisation(_Section):
    """How one stage is optimised: AdamW, linear warm-up, then cosine decay to a tenth."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0, description="Samples a step on each process.")
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    checkpoint_every: int = Field(default=1000, gt=0, description="Steps between checkpoints.")
    capture: bool = Field(
        default=False,
        description="On a GPU, launch the passes of a step as one CUDA graph, captured once for "
        "each shape of batch: several times faster where kernels are small. Not with FSDP.",
    )


class _Component(_Section):
    """A part of the model that is built as told here, or taken as it was pretrained."""

    pretrained: str | None = Field(
        default=None,
        min_length=1,
        description="Folder, or id on the Hugging Face Hub (`user/name@revision`), of safetensors "
        "weights to begin with.",
    )
    subfolder: str | None = Field(default=None, description="Where in `pretrained` they are.")

    @model_validator(mode="after")
    def _pretrained_or_built(self) -> Self:
        # A change of the recipe to null takes a value out.
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        if self.pretrained is None:
            misplaced, reason = given & _PLACES, "there is no pretrained for it"
        else:
            misplaced = given - _PLACES - {"pretrained", "train"}
            reason = "what is pretrained is used as it is"
        if misplaced:
            raise ValueError(f"leave out {', '.join(sorted(misplaced))}: {reason}")
        return self


class AutoencoderRecipe(_Component):
    """The frame autoencoder: a diffusers `AutoencoderKL` to train, f = 2 ** (blocks - 1).

    With `pretrained` it is any image autoencoder of diffusers, which stays as it is.
    """

    block_out_channels: Channels = (32, 64, 96, 128)
    layers_per_block: int = Field(default=1, gt=0)
    latent_channels: int = Field(default=16, gt=0)
    norm_num_groups: int = Field(default=16, gt=0)
    kl_weight: float = Field(default=1e-6, ge=0)
    decoder_only: bool = Field(
        default=False, description="Leave the encoder, and so the latents, as they are."
    )
    compile: bool = Field(default=False, description=_COMPILE)
    optimisation: Optimisation | None = Field(
        default=None, description="Needed, unless the autoencoder is pretrained."
    )

    @model_validator(mode="after")
    def _trained_or_pretrained(self) -> Self:
        if self.pretrained is None and self.optimisation is None:
            raise ValueError("give optimisation to train it, or pretrained to take another's")
        _check_divisible(self.block_out_channels, self.norm_num_groups, "norm_num_groups")
        return self


class TextRecipe(_Component):
    """The CLIP text encoder: a small one to train with the denoiser, or a pretrained one."""

    tokenizer_subfolder: str | None = Field(
        default=None, description="Where in `pretrained` the tokenizer is."
    )
    train: bool | None = Field(
        default=None,
        description="Whether it is trained with the denoiser; by default it is, but for one that "
        "`pretrained` or a text-to-video folder brings along.",
    )
    vocab_size: int = Field(default=1000, gt=0)
    max_length: int = Field(default=24, gt=2, description="Tokens, with those of start and end.")
    hidden_size: int = Field(default=128, gt=0)
    num_layers: int = Field(default=2, gt=0)
    num_heads: int = Field(default=4, gt=0)

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_heads "
                f"({self.num_heads})"
            )
        return self


class UNetRecipe(_Section):
    """The paper's denoiser (diffusers `UNet3DConditionModel`); the last level has no attention."""

    block_out_channels: Channels = (96, 192)
    layers_per_block: int = Field(default=1, gt=0)
    attention_head_dim: int = Field(default=16, gt=0)

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        _check_divisible(self.block_out_channels, _UNET_NORM_GROUPS, "the groups of its norms")
        return self


class TransformerRecipe(_Section):
    """A video transformer in its place (diffusers `LatteTransformer3DModel`, arXiv 2401.03048)."""

    num_layers: int = Field(default=4, gt=0, description="Pairs of a spatial and a temporal block.")
    patch_size: int = Field(default=1, gt=0, description="Cells of the latents per patch side.")
    num_attention_heads: int = Field(default=6, gt=0)
    # The code of a patch's place takes a sine and a cosine of its row and of its column.
    attention_head_dim: int = Field(default=32, gt=0, multiple_of=4)


class Conditions(_Section):
    """How often each mix of conditions is trained; weights, not necessarily summing to 1."""

    language: float = Field(default=0.4, ge=0)
    actions: float = Field(default=0.4, ge=0)
    language_and_actions: float = Field(default=0.05, ge=0)
    none: float = Field(default=0.05, ge=0)
    whole_sequence: float = Field(
        default=0.1, ge=0, description="No condition, no clean frame: what fast learning does."
    )
    single_past_frame: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Share of steps with f_p = 1, and f_g longer by as much: same window.",
    )
    single_future_frame: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of steps with f_g = 1, for worlds that are stepped frame by frame.",
    )
    context_noise: float = Field(
        default=0.1, ge=0, description="Largest noise on the context, so that rollouts hold."
    )

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        mixes = (self.language, self.actions, self.language_and_actions, self.none)
        if not any((*mixes, self.whole_sequence)):
            raise ValueError("at least one mix of conditions needs a weight above 0")
        return self


class WorldModelRecipe(_Section):
    """Slow learning (paper section 3.1)."""

    num_past_frames: int = Field(default=4, gt=0)
    num_future_frames: int = Field(default=8, gt=0)
    prediction: Prediction = Field(
        default="flow",
        description="What the denoiser predicts: rectified flow's velocity, the noise (the "
        "paper's choice) or the v-target.",
    )
    shift: float = Field(
        default=4.0,
        gt=0,
        description="Of rectified flow: above 1, training and sampling dwell on high noise.",
    )
    compile: bool = Field(default=False, description=_COMPILE)
    gradient_checkpointing: bool = Field(
        default=False,
        description="Recompute the denoiser's activations in backward: less memory, more time.",
    )
    eval_every: int = Field(
        default=0,
        ge=0,
        description="Steps between held-out metrics; above 0, every 50th episode (at least "
        "one) is kept out of all training. 0 for never.",
    )
    unet: UNetRecipe | None = None
    transformer: TransformerRecipe | None = None
    text: TextRecipe = TextRecipe()
    conditions: Conditions = Conditions()
    optimisation: Optimisation

    @model_validator(mode="after")
    def _one_denoiser(self) -> Self:
        if self.unet and self.transformer:
            raise ValueError("give unet or transformer, not both: a model has one denoiser")
        return self

    @property
    def denoiser(self) -> UNetRecipe | TransformerRecipe:
        """The denoiser's kind and sizes; a UNet by default, as in the paper."""
        return self.transformer or self.unet or UNetRecipe()


class InverseDynamicsRecipe(_Section):
    """Two frames to the action between them (paper section 3.4)."""

    block_out_channels: Channels = (32, 64, 128, 128)
    hidden_size: int = Field(default=256, gt=0)
    optimisation: Optimisation

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        _check_divisible(self.block_out_channels, 8, "groups of its norms")
        return self


class OutcomeHeadRecipe(_Section):
    """A head on the latents that tells success and reward."""

    hidden_size: int = Field(default=96, gt=0, multiple_of=8)
    num_blocks: int = Field(default=3, gt=0)
    latent_noise: float = Field(
        default=0.2, ge=0, description="Largest noise on the latents, so that imagined ones do."
    )
    optimisation: Optimisation


class TemporalDistanceRecipe(_Section):
    """A head on the latents that tells how many frames lead from one frame to another."""

    hidden_size: int = Field(default=96, gt=0, multiple_of=8)
    num_blocks: int = Field(default=3, gt=0)
    max_frames: int = Field(
        default=24, gt=0, description="The most frames that are told apart from further ones."
    )
    latent_noise: float = Field(
        default=0.2, ge=0, description="Largest noise on the latents, so that imagined ones do."
    )
    optimisation: Optimisation


class Recipe(_Section):
    """One trained model: its data and its stages; a stage left out is not trained."""

    name: str
    seed: int = Field(default=0, ge=0, lt=2**32)
    mixed_precision: MixedPrecision = "bf16"
    data: DataRecipe
    autoencoder: AutoencoderRecipe | None = None
    world_model: WorldModelRecipe | None = None
    inverse_dynamics: InverseDynamicsRecipe | None = None
    outcome_head: OutcomeHeadRecipe | None = None
    temporal_distance: TemporalDistanceRecipe | None = None

    @classmethod
    def load(cls, path: Path, changes: Sequence[str] = ()) -> "Recipe":
        """Read a recipe.

        Args:
            path: The YAML file.
            changes: Values to use instead of the file's, such as `world_model.shift=3.0`; what
                follows the `=` is YAML, so `world_model.unet=null` takes a section out.

        Raises:
            SfvgenError: The file is missing, is no YAML, or a key or value is wrong.
        """
        return validated(cls, read_changed(path, changes), str(path))


def read_changed(path: Path, changes: Sequence[str]) -> dict[str, Any]:
    """The sections of a YAML recipe after the changes that `Recipe.load` describes.

    Raises:
        SfvgenError: The file is missing or no YAML, or a change is not understood.
    """
    sections = read_recipe(path)
    for change in changes:
        _apply(change, sections)
    return sections


def _apply(change: str, sections: dict[str, Any]) -> None:
    """Put one `key.key=value` into nested sections."""
    name, equals, text = change.partition("=")
    *parents, last = name.split(".")
    require(
        bool(equals and last), f"a change of the recipe looks like key.key=value, not {change!r}"
    )
    value = parsed_yaml(text, f"the value in {change!r} is no YAML")
    section: Any = sections
    for parent in parents:
        if isinstance(section, list):
            known = parent.isdecimal() and int(parent) < len(section)
            require(known, f"{change!r}: the recipe has no entry {parent} there")
            section = section[int(parent)]
        else:
            section = section.setdefault(parent, {})
        is_section = isinstance(section, dict | list)
        require(is_section, f"{change!r}: {parent} is no section of the recipe")
    require(isinstance(section, dict), f"{change!r}: {last} is no key of the recipe")
    section[last] = value
