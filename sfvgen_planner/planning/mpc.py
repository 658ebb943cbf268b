"""Model-predictive control: sampled actions, imagined futures, an objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch

from sfvgen_planner.errors import require
from sfvgen_planner.imagination import Imagination, ImaginationWrapper
from sfvgen_planner.planning.action_search import ActionSearch, SearchConfig
from sfvgen_planner.planning.objectives import GoalImage, Objective
from sfvgen_planner.planning.plan import Goal, Plan
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
        require(
            self.num_inference_steps >= 1,
            f"num_inference_steps must be at least 1, got {self.num_inference_steps}",
        )


class MPCPlanner:
    """Search actions whose imagined future has the lowest cost.

    All candidates of a plan share their noise (common random numbers), so their costs differ by
    their actions alone. The next plan starts from this one, shifted by the steps taken since.

    Args:
        solver: :class:`~sfvgen_planner.planning.CEM` by default.
        objective: makes the objective of a goal; by default the latent distance to a goal image.
        config: horizon and sampling.
    """

    def __init__(
        self,
        solver: Solver | None = None,
        objective: Callable[[Any], Objective] = GoalImage,
        config: MPCConfig | None = None,
    ) -> None:
        self.objective = objective
        self.config = config or MPCConfig()
        self._search = ActionSearch(solver, self.config)

    def reset(self) -> None:
        """Forget the previous plan."""
        self._search.reset()

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
        objective = self.objective(goal)
        space = cast(gym.spaces.Box, imagination.action_space)
        solver_seed, noise_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))

        def imagine(actions: torch.Tensor) -> Imagination:
            return imagination.imagine(
                actions, num_inference_steps=self.config.num_inference_steps, seed=noise_seed
            )

        solution = self._search.solve(
            lambda actions: objective(imagine(actions)),
            space,
            imagination.num_steps,
            solver_seed,
            start,
        )
        future = imagine(solution.actions[None])
        return Plan(
            actions=solution.actions.numpy(),
            frames=future.frames[0],
            cost=float(objective(future)[0]),
            diagnostics=solution.diagnostics,
        )

    def action(self, plan: Plan, step: int, frame: np.ndarray) -> np.ndarray:
        """The planned action: MPC corrects itself by planning again, not by looking."""
        return plan.actions[step]
