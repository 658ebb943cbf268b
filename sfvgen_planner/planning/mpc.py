"""Model-predictive control: sampled actions, imagined futures, an objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sfvgen_planner.errors import check_seed, require, require_count
from sfvgen_planner.imagination import (
    Imagination,
    ImaginationWrapper,
    decode_videos,
    imagine_batch,
)
from sfvgen_planner.planning.action_search import ActionSearch, SearchConfig
from sfvgen_planner.planning.objectives import OBJECTIVES, GoalImage, Objective
from sfvgen_planner.planning.plan import BatchPlanner, Goal, Plan
from sfvgen_planner.planning.solvers import Solver


@dataclass(frozen=True)
class MPCConfig(SearchConfig):
    """Settings of :class:`MPCPlanner`.

    Attributes:
        num_inference_steps: denoiser calls per imagined chunk.
    """

    num_inference_steps: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("num_inference_steps", self.num_inference_steps)


class MPCPlanner(BatchPlanner):
    """Search actions whose imagined future has the lowest cost.

    All candidates of a plan share their noise (common random numbers), so their costs differ by
    their actions alone. The next plan starts from this one, shifted by the steps taken since. Plans
    for several environments are searched in one batch, each with its own noise.

    Args:
        solver: :class:`~sfvgen_planner.planning.CEM` by default; one that is no
            :class:`~sfvgen_planner.planning.BatchSolver` plans for one environment at a time.
        objective: makes the objective of a goal; by default the latent distance to a goal image.
        config: horizon and sampling.

    Raises:
        SfvgenError: ``objective`` is one, in place of what makes one of a goal.
    """

    def __init__(
        self,
        solver: Solver | None = None,
        objective: Callable[[Any], Objective] = GoalImage,
        config: MPCConfig | None = None,
    ) -> None:
        require(
            callable(objective) and not isinstance(objective, OBJECTIVES),
            "objective must make one of a goal, as GoalImage does or partial(TaskReward, head), "
            f"but got {objective!r}; for one that is made already give lambda goal: it",
        )
        self.objective = objective
        self.config = config or MPCConfig()
        self._search = ActionSearch(solver, self.config)

    def reset(self, imagination: ImaginationWrapper | None = None) -> None:
        """Forget the previous plan of one imagination, or of all."""
        self._search.reset(imagination)

    def plan(
        self,
        imagination: ImaginationWrapper,
        goal: Goal,
        seed: int | None = None,
        start: np.ndarray | None = None,
    ) -> Plan:
        """Plan from the present moment; see :class:`~sfvgen_planner.planning.Planner`.

        ``start``, actions ``(T, A)``, is where the search begins, in place of the previous plan.
        """
        return self.plan_batch([imagination], [goal], [seed], [start])[0]

    def plan_batch(
        self,
        imaginations: Sequence[ImaginationWrapper],
        goals: Sequence[Goal],
        seeds: Sequence[int | None],
        starts: Sequence[np.ndarray | None] | None = None,
    ) -> list[Plan]:
        """Plan for several; see :class:`~sfvgen_planner.planning.BatchPlanner`."""
        objectives = [self.objective(goal) for goal in goals]
        return self.search_batch(imaginations, objectives, seeds, starts)

    def search_batch(
        self,
        imaginations: Sequence[ImaginationWrapper],
        objectives: Sequence[Objective],
        seeds: Sequence[int | None],
        starts: Sequence[np.ndarray | None] | None = None,
    ) -> list[Plan]:
        """Plan for several with an objective for each, whatever goals they come from.

        Args:
            imaginations: of one world model and one memory.
            objectives: one for each.
            seeds: likewise.
            starts: likewise, actions ``(T, A)`` where the search begins, or None.
        """
        for seed in seeds:
            check_seed(seed)
        states = [np.random.SeedSequence(seed).generate_state(2).tolist() for seed in seeds]
        solver_seeds, noise_seeds = zip(*states, strict=True)

        def imagine(actions: torch.Tensor) -> list[Imagination]:
            return imagine_batch(
                imaginations,
                actions,
                num_inference_steps=self.config.num_inference_steps,
                seeds=noise_seeds,
            )

        def costs(futures: Sequence[Imagination]) -> torch.Tensor:
            found = [
                torch.as_tensor(objective(future))
                for objective, future in zip(objectives, futures, strict=True)
            ]
            return torch.stack(found)

        solutions = self._search.solve(
            lambda actions: costs(imagine(actions)), imaginations, solver_seeds, starts
        )
        futures = imagine(torch.stack([solution.actions for solution in solutions])[:, None])
        videos = decode_videos(futures[0].world_model, [future.latents[0] for future in futures])
        return [
            Plan(solution.actions.numpy(), frames, cost, solution.diagnostics)
            for solution, frames, cost in zip(
                solutions, videos, costs(futures)[:, 0].tolist(), strict=True
            )
        ]
