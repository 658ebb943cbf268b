"""What all evaluations share: held-out seeds, their settings, and figures written part by part."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch

from sfvgen_planner.errors import require, require_count
from sfvgen_planner.evaluation.results import Figure, merge_figures, read_rows
from sfvgen_planner.files import prepare_folder
from sfvgen_planner.world_model.checkpoint import trained_on
from sfvgen_planner.world_model.device import check_device
from sfvgen_planner.world_model.shipped import checkpoint_folder

HELD_OUT_SEED = 100_000
"""First seed of the evaluation episodes; training recipes stay below it."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What every evaluation is run with.

    Attributes:
        model: shipped name, checkpoint folder or Hub id.
        device: of the model; by default the GPU where there is one.
        batch_size: videos imagined at once.
        num_workers: processes that play episodes, in the evaluations that can be spread.
        num_envs: episodes that each of them plays side by side, where they are planned in the world
            model: its calls are then for all of them, which on a GPU take little longer.
        folder: of the result file, where what belongs to it goes too.
        figures: names of those asked for; None for all.
        env_id: of the environment whose pictures are judged; None for the model's own.
    """

    env_id: ClassVar[str | None] = None
    model: str = "tabletop"
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    batch_size: int = 16
    num_workers: int = 1
    num_envs: int = 1
    folder: Path = Path("results")
    figures: tuple[str, ...] | None = None

    @classmethod
    def of(cls, model: str, device: str | None = None, num_episodes: int | None = None) -> Self:
        """Settings from the command line.

        Args:
            model: shipped name, checkpoint folder or Hub id.
            device: by default the GPU where there is one.
            num_episodes: of every part, in place of what each needs; parts that count runs make
                no more than so many.

        Raises:
            SfvgenError: the device or the number is no good.
        """
        require(
            num_episodes is None or num_episodes >= 1,
            f"at least 1 episode is needed, got {num_episodes}",
        )
        config = cls(model=model)
        if device is not None:
            check_device(device)
            config = replace(config, device=device)
        if num_episodes is None:
            return config
        names = [part.name for part in fields(cls)]
        sizes: dict[str, Any] = {n: num_episodes for n in names if n.endswith("_episodes")}
        runs = [name for name in names if name.endswith("_runs")]
        sizes |= {name: min(getattr(config, name), num_episodes) for name in runs}
        return replace(config, **sizes)

    def asks_for(self, *names: str) -> bool:
        """Whether one of these figures is asked for, where a measurement can leave some out."""
        return self.figures is None or not set(names).isdisjoint(self.figures)

    @property
    def model_stem(self) -> str:
        """The model as a part of file names, so that those of two models do not meet."""
        return re.sub(r"[^\w.-]+", "_", self.model).strip("_")[-100:]

    def seeds(self, count: int) -> range:
        """The first ``count`` held-out seeds."""
        return range(HELD_OUT_SEED, HELD_OUT_SEED + count)


def check_choices(chosen: Mapping[str, tuple[Sequence[object], Sequence[object]]]) -> None:
    """Refuse what can't be chosen.

    Args:
        chosen: what is chosen, in one word, to the values and those that there are.

    Raises:
        SfvgenError: a value is not one of those that there are.
    """
    for name, (values, known) in chosen.items():
        for value in values:
            require(
                value in known,
                f"there is no {name} {value!r}; choose from {', '.join(map(str, known))}",
            )


Config = TypeVar("Config", bound=EvaluationConfig)


def measure(
    out: Path,
    config: Config,
    parts: Mapping[str, Callable[[Config], Iterable[Figure]]],
    only: Sequence[str] | None = None,
) -> list[Figure]:
    """Measure figures and merge them into the result file ``out``.

    Each figure is written as soon as its part yields it, so an interrupted run keeps them.

    Args:
        out: the result file.
        config: what to measure with.
        parts: figure to the measurement that it comes from.
        only: figures to measure; all by default. Figures that come from one measurement are
            written together.

    Raises:
        SfvgenError: a figure is unknown, a number of processes or environments is below 1, the
            model is of another environment, or ``out`` cannot be written.
    """
    names = list(parts if only is None else only)
    for name in names:
        require(name in parts, f"there is no figure {name!r}; choose from {', '.join(parts)}")
    for setting in ("num_workers", "num_envs"):
        require_count(setting, getattr(config, setting))
    if config.env_id is not None:
        check_env(config.model, config.env_id)
    prepare_folder(out.parent)
    read_rows(out)
    config = replace(config, folder=out.parent, figures=tuple(names))
    figures: list[Figure] = []
    for part in dict.fromkeys(parts[name] for name in names):
        for figure in part(config):
            merge_figures(out, [figure])
            figures.append(figure)
    return figures


def check_env(model: str, env_id: str) -> None:
    """Refuse a model of another environment; some models do not tell."""
    found = trained_on(checkpoint_folder(model))
    require(
        found in (None, env_id),
        f"{model} was trained on {found}, but this is measured on {env_id}; give a model of that",
    )
