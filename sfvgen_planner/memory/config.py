"""What a memory is made of and how it learns: one design, of which the variants are settings."""

import math
import re
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal, get_args

from pydantic import ConfigDict

from sfvgen_planner.errors import SfvgenError, require, require_count

# Diffusers' names of what mixes frames, in the UNet (attention and convolutions over time, without
# the convolutions' norms, activations and dropouts) and in the transformer (its temporal blocks).
# Neither class has the other's names, so one regex serves both.
_TEMPORAL_BLOCKS = r"(.*(temp_attentions|transformer_in)|temporal_transformer_blocks)\."
_ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)"
TEMPORAL_LAYERS = (
    rf"({_TEMPORAL_BLOCKS}.*{_ATTENTION}"
    r"|.*temp_convs\.\d+\.(conv1\.2|conv[234]\.3)"
    r"|temporal_transformer_blocks\.\d+\.ff\.net\.(0\.proj|2))"
)
"""The paper's targets: temporal attention and convolutions."""
TEMPORAL_VALUES = rf"{_TEMPORAL_BLOCKS}.*attn[12]\.(to_v|to_out\.0)"
"""What temporal attention hands on, where a cell of the latents keeps its place."""

Rule = Literal["adam", "normalised"]

_SIZE_OF_THE_ADAPTERS = ("rank", "num_time_codes")
_SIZE_OF_A_WRITE = ("learning_rate", "num_steps", "num_noise_draws", "min_noise")


@dataclass(frozen=True)
class MemoryConfig:
    """Adapters on temporal layers and the rule by which they learn a chunk.

    The defaults are the paper's TEMP-LoRA (section 3.2); `MEMORY_VARIANTS` names the others.

    Attributes:
        rank: Rank of the adapters, r (paper: 32).
        target_modules: Regular expression of the layers to adapt.
        position_code: Add to the bottleneck a code of the cell of the latents, `P[cell]`; for
            layers whose tokens are `(batch * cells, frames, channels)`, as in temporal attention.
        num_time_codes: Chunk indices with a code of their own, `(1 + W[chunk])` and `C[chunk]`;
            chunks beyond them share the last one. 0 for no time code.
        instruction_code: Scale and shift the bottleneck by the instruction too, so that the command
            chooses which of the places that a memory holds is read.
        num_time_slots: Beside the adapters each memory has a table of what stood where and when,
            with an entry for each slot and cell: a chunk is written into its own slot, in turn, and
            the chunk and the instruction choose what of which slots is read. 0 for no table.
        table_side: Entries of a table along each side of the picture at most; where the latents are
            finer, neighbouring cells share one, so that a table does not grow with the resolution.
        rule: "adam" learns both factors of the adapters with Adam, started anew in each write;
            "normalised" learns only B, by `B -= learning_rate * g / rms(g)` per tensor.
        learning_rate: The rule's step size (paper: Adam, 1e-4).
        num_steps: Steps of the rule per write.
        num_noise_draws: Noise levels averaged in each step; a write's cost is in proportion.
        min_noise: Lowest noise level drawn, in [0, 1): 0 for the levels of slow learning.
        conditioned: Learn to generate the chunk from its past, instruction and actions (the
            original TEMP-LoRA) rather than the whole sequence without any condition (Eq. 3).
        whole_history: Each step learns a chunk drawn from all written so far, not the present one.
        max_past_frames: Frames of context in writing and imagining, if fewer than the model's f_p.

    Raises:
        SfvgenError: A setting is out of range.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    rank: int = 32
    target_modules: str = TEMPORAL_LAYERS
    position_code: bool = False
    num_time_codes: int = 0
    instruction_code: bool = False
    num_time_slots: int = 0
    table_side: int = 8
    rule: Rule = "adam"
    learning_rate: float = 1e-4
    num_steps: int = 4
    num_noise_draws: int = 2
    min_noise: float = 0.0
    conditioned: bool = False
    whole_history: bool = False
    max_past_frames: int | None = None

    def __post_init__(self) -> None:
        for name in ("rank", "table_side", "num_steps", "num_noise_draws"):
            require_count(f"{name} of a memory", getattr(self, name))
        for name in ("learning_rate", "min_noise"):
            value = getattr(self, name)
            require(isinstance(value, Real), f"{name} of a memory must be a number, got {value!r}")
        require(
            0 < self.learning_rate < math.inf,
            f"learning_rate of a memory must be positive and finite, got {self.learning_rate}",
        )
        try:
            re.compile(self.target_modules)
        except (re.error, TypeError) as error:
            raise SfvgenError(
                f"target_modules of a memory, {self.target_modules!r}, is no regular expression "
                f"({error})"
            ) from error
        require(
            self.rule in get_args(Rule),
            f"rule of a memory must be one of {', '.join(get_args(Rule))}, got {self.rule!r}",
        )
        require(
            0 <= self.min_noise < 1,
            f"min_noise of a memory must be in [0, 1), got {self.min_noise}",
        )
        for name in ("num_time_codes", "num_time_slots"):
            require_count(f"{name} of a memory", getattr(self, name), least=0)
        require(
            not self.num_time_slots
            or (
                self.rule == "normalised"
                and self.position_code
                and self.num_time_codes > 0
                and self.instruction_code
            ),
            "num_time_slots of a memory go with rule: normalised, position_code, num_time_codes "
            "and instruction_code; set these too",
        )
        if self.max_past_frames is not None:
            require_count("max_past_frames of a memory", self.max_past_frames)

    @property
    def is_coded(self) -> bool:
        """Whether the bottleneck has a code."""
        return self.position_code or self.num_time_codes > 0 or self.instruction_code

    @property
    def fast_factors(self) -> tuple[str, ...]:
        """PEFT's names of the factors that each memory has of its own; the rest is slow."""
        if self.rule == "adam":
            return ("lora_A", "lora_B")
        return ("lora_B", "lora_table") if self.num_time_slots else ("lora_B",)

    def can_continue(self, trained: "MemoryConfig") -> bool:
        """Whether adapters that were trained with other settings can go on with these.

        The size of a write, its steps and its noise, may differ: it shapes no parameter. An
        instruction code and a table may be new, because they are zero at the start, and the rank
        and the number of time codes may be larger (`Adapters.load_smaller`).
        """
        write = {name: getattr(self, name) for name in _SIZE_OF_A_WRITE}
        sizes = {
            name: max(getattr(self, name), getattr(trained, name)) for name in _SIZE_OF_THE_ADAPTERS
        }
        heard = trained.instruction_code or self.instruction_code
        slots = trained.num_time_slots or self.num_time_slots
        side = trained.table_side if trained.num_time_slots else self.table_side
        grown = {
            **write,
            **sizes,
            "instruction_code": heard,
            "num_time_slots": slots,
            "table_side": side,
        }
        return replace(trained, **grown) == self


MEMORY_VARIANTS: dict[str, MemoryConfig | None] = {
    "none": None,
    "paper": MemoryConfig(),
    "original_temp_lora": MemoryConfig(conditioned=True),
    "no_local_rule": MemoryConfig(whole_history=True),
    "no_chunk_input": MemoryConfig(max_past_frames=1),
    "ours": MemoryConfig(
        target_modules=TEMPORAL_VALUES,
        position_code=True,
        num_time_codes=10,
        rule="normalised",
        learning_rate=0.01,
        num_steps=1,
        num_noise_draws=4,
        min_noise=0.95,
    ),
}
"""The paper's ablations and our own design. None stands for no memory at all."""


def memory_variant(name: str) -> MemoryConfig | None:
    """The settings of a named variant.

    Raises:
        SfvgenError: There is none of this name.
    """
    if name not in MEMORY_VARIANTS:
        raise SfvgenError(f"no memory variant {name!r}; choose from {', '.join(MEMORY_VARIANTS)}")
    return MEMORY_VARIANTS[name]
