"""What the evaluation of memories compares, and at which size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sfvgen_planner.errors import check_counts, require
from sfvgen_planner.evaluation.measure import EvaluationConfig, check_choices
from sfvgen_planner.evaluation.memory_variants import VARIANTS, Variant, offered
from sfvgen_planner.evaluation.return_trials import NUM_MOVES_SINCE, RECALLS, Recall
from sfvgen_planner.evaluation.tabletop import ENV_ID

MANY_STEPS = 25
"""Denoiser calls per chunk at which the paper's cost of fast learning is to be compared."""
BASE_MODEL_FIGURES = {"fast_learning_time_overhead", "fast_learning_memory_overhead"}


@dataclass(frozen=True)
class MemoryConfig(EvaluationConfig):
    """What is compared.

    Attributes:
        num_open_loop_episodes: trials for each recall and horizon whose return is imagined.
        num_closed_loop_episodes: of these, those that are planned and executed.
        num_timed_runs: repetitions of a timing, after one that is not counted.
        variants: names of `VARIANTS`, by default all that the model has; each is measured on the
            same trials with the same noise.
        recalls: which place is asked for.
        horizons: memory horizons in chunks.
        num_moves_before: moves of other cubes before the asked one first moves.
        num_inference_steps: denoiser calls per chunk.
        guidance_scale: of the instruction.
        num_noise_draws: noise levels averaged in a memory's writes; None for as many as each has.
        no_loop_model: what the slow-fast loop of the model began with.
        base_model: measure what fast learning costs in a model of the paper's size, with random
            weights, in place of the shipped one.
    """

    env_id = ENV_ID
    num_open_loop_episodes: int = 200
    num_closed_loop_episodes: int = 200
    num_timed_runs: int = 5
    variants: tuple[str, ...] = ()
    recalls: tuple[Recall, ...] = RECALLS
    horizons: tuple[int, ...] = tuple(NUM_MOVES_SINCE)
    num_moves_before: int = 0
    num_inference_steps: int = 4
    guidance_scale: float = 2.0
    num_noise_draws: int | None = None
    no_loop_model: str = "tabletop"
    base_model: bool = False

    def __post_init__(self) -> None:
        check_counts(self, "num_noise_draws")
        require(
            not self.base_model or self.figures is None or set(self.figures) <= BASE_MODEL_FIGURES,
            "a model of the paper's size (base_model) is measured for what fast learning costs "
            f"alone; choose among {', '.join(sorted(BASE_MODEL_FIGURES))}",
        )
        check_choices(
            {
                "variant": (self.variants, tuple(VARIANTS)),
                "recall": (self.recalls, RECALLS),
                "horizon": (self.horizons, tuple(NUM_MOVES_SINCE)),
            }
        )

    @property
    def offered(self) -> dict[str, Variant]:
        """The variants to compare, by name."""
        return {
            name: variant
            if variant.memory is None
            else replace(variant, num_noise_draws=self.num_noise_draws)
            for name, variant in offered(self.variants, self.model).items()
        }

    def told(self, variant: str) -> dict[str, Any]:
        """What a figure tells of its variant."""
        if self.num_noise_draws is None or VARIANTS[variant].memory is None:
            return {"variant": variant}
        return {"variant": variant, "num_noise_draws": self.num_noise_draws}

    @property
    def timed_steps(self) -> tuple[int, ...]:
        """Denoiser calls per chunk at which costs are measured."""
        return tuple(dict.fromkeys((MANY_STEPS, self.num_inference_steps)))

    @property
    def sampling(self) -> dict[str, Any]:
        """How chunks are imagined."""
        return {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
        }
