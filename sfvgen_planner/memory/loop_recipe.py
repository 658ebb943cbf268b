"""Recipes of the slow-fast learning loop: YAML files, read into validated models."""

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sfvgen_planner.data.recipe import DataRecipe, validated
from sfvgen_planner.memory.config import MemoryConfig, memory_variant
from sfvgen_planner.memory.contexts import CONTEXTS
from sfvgen_planner.world_model.recipe import (
    Conditions,
    MixedPrecision,
    Optimisation,
    read_changed,
)


class LoopStage(BaseModel):
    """One stretch of the loop; a curriculum is several, short horizons first.

    `optimisation.batch_size` counts all samples of a step: those with a memory and the ordinary
    ones without, which keep the single skills.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_chunks: int = Field(gt=0, description="Longest horizon: chunks written into a memory.")
    num_memories: int = Field(gt=0, description="Fresh memories in each step, on each process.")
    samples_per_memory: int = Field(
        default=2, gt=0, description="Noise levels of the window that each memory is judged by."
    )
    num_noise_draws: int | None = Field(
        default=None,
        gt=0,
        description="Noise levels averaged in a write while training: fewer than the memory's own "
        "cost less and train it as well.",
    )
    second_order: bool = Field(
        default=False, description="Let gradients flow through the writes, at about twice the cost."
    )
    second_order_writes: int = Field(
        default=0,
        ge=0,
        description="In place of second_order: let gradients flow through so many of the writes, "
        "drawn at random, each by itself. What they cost does not grow with the horizon.",
    )
    stored_batches: int = Field(
        default=0,
        ge=0,
        description="Batches of memories that are written as a round begins and stay as they are, "
        "as in the paper's loop; 0 writes fresh ones in each step.",
    )
    steps_per_round: int = Field(default=100, gt=0, description="Steps on stored memories.")
    adapters_only: bool = Field(
        default=False, description="Leave the slow weights as they are; no ordinary samples."
    )
    optimisation: Optimisation

    @property
    def num_slow_samples(self) -> int:
        """Ordinary samples in each step."""
        return self.optimisation.batch_size - self.num_memories * self.samples_per_memory

    @model_validator(mode="after")
    def _check_samples(self) -> Self:
        if self.stored_batches and (self.second_order or self.second_order_writes):
            raise ValueError(
                "stored memories are frozen: second_order and second_order_writes need "
                "stored_batches 0"
            )
        if self.second_order and self.second_order_writes:
            raise ValueError("give second_order or second_order_writes, not both")
        with_memory = self.num_memories * self.samples_per_memory
        if self.adapters_only and self.num_slow_samples:
            raise ValueError(
                f"batch_size must be num_memories * samples_per_memory = {with_memory} in a stage "
                "that trains the adapters only"
            )
        if not self.adapters_only and self.num_slow_samples < with_memory:
            raise ValueError(
                f"batch_size must be at least {2 * with_memory}: with fewer ordinary samples than "
                f"the {with_memory} with a memory, single skills degrade"
            )
        return self


class LoopRecipe(BaseModel):
    """The slow-fast learning loop (paper section 3.3, Algorithm 1b) on a trained model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    seed: int = Field(default=0, ge=0, lt=2**32)
    mixed_precision: MixedPrecision = "bf16"
    compile: bool = Field(
        default=False,
        description="torch.compile the denoiser on a GPU; writes of second order stay eager.",
    )
    eval_every: int = Field(
        default=0, ge=0, description="Steps between held-out losses; 0 for never."
    )
    data: DataRecipe
    variant: str = Field(
        default="ours",
        description="Name of the memory's design; `none` trains the model for `context` instead.",
    )
    memory: dict[str, Any] = Field(
        default_factory=dict, description="Settings of `MemoryConfig` that differ from it."
    )
    context: str = Field(
        default="recent",
        description="Frames that recalls are imagined from, of `CONTEXTS`, without a memory.",
    )
    recalls: dict[str, Annotated[float, Field(ge=0)]] = Field(
        min_length=1,
        description="Regular expressions of the instructions that need the memory, and their "
        "weights: how often each is drawn.",
    )
    recall_share: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Share of the memories that are judged by a recall; the rest by any window.",
    )
    change_weight: float = Field(
        default=0.0,
        ge=0,
        description="How much more those cells of a judged window count that change: there a "
        "memory shows. 0 counts all alike.",
    )
    max_elapsed: int = Field(
        default=8,
        ge=0,
        description="A recall's window begins at most so many frames after its instruction, and "
        "is drawn in proportion to 1 / (1 + frames).",
    )
    conditions: Conditions = Conditions()
    stages: list[LoopStage] = Field(min_length=1)

    @property
    def memory_config(self) -> MemoryConfig | None:
        """The variant with this recipe's own settings; None for no memory."""
        config = memory_variant(self.variant)
        if config is None:
            return None
        return validated(MemoryConfig, {**asdict(config), **self.memory}, "memory")

    def training_config(self, stage: LoopStage) -> MemoryConfig | None:
        """How memories learn in a stage."""
        draws, config = stage.num_noise_draws, self.memory_config
        if draws is None or config is None:
            return config
        return replace(config, num_noise_draws=draws)

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        config = self.memory_config
        if not any(self.recalls.values()):
            raise ValueError("recalls: at least one needs a weight above 0")
        for pattern in self.recalls:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"recalls: {pattern!r} is no regular expression ({error})"
                ) from error
        if self.context not in CONTEXTS:
            raise ValueError(f"context must be one of {', '.join(CONTEXTS)}, got {self.context!r}")
        if config is None:
            self._check_context()
            return self
        if self.context != "recent":
            raise ValueError("context: a memory goes with recent frames; set variant: none")
        if config.conditioned or config.whole_history:
            raise ValueError(
                "the loop trains memories that learn the present chunk without conditions; choose "
                "another variant"
            )
        if config.rule == "adam" and any(stage.adapters_only for stage in self.stages):
            raise ValueError("adapters_only: adapters that learn with Adam start untrained")
        return self

    def _check_context(self) -> None:
        if self.context == "recent":
            raise ValueError(
                "the variant none has no memory to train; choose another, or another context"
            )
        if (
            self.memory
            or self.eval_every
            or self.change_weight
            or any(stage.stored_batches or stage.adapters_only for stage in self.stages)
        ):
            raise ValueError(
                "memory, eval_every, change_weight, stored_batches and adapters_only are for a "
                "memory; leave them out with the variant none"
            )

    @classmethod
    def load(cls, path: Path, changes: Sequence[str] = ()) -> "LoopRecipe":
        """Read a recipe.

        Args:
            path: The YAML file.
            changes: Values to use instead of the file's, such as `stages.0.max_chunks=3`.

        Raises:
            SfvgenError: The file is missing, is no YAML, or a key or value is wrong.
        """
        return validated(cls, read_changed(path, changes), str(path))
