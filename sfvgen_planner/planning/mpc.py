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
from sfvgen_planner.planning.objectives import GoalImage, Objective
from sfvgen_planner.planning.plan import Goal, Plan
from sfvgen_planner.planning.solvers import CEM, Solver


@dataclass(frozen=True)
class MPCConfig:
    """Settings of :class:`MPCPlanner`.

    Attributes:
        horizon: steps to look ahead; a multiple of ``action_block``.
        action_block: steps that one searched action is held for. Longer blocks make the search
            space smaller.
        num_inference_steps: denoiser calls per imagined chunk.
    """

    horizon: int = 8
    action_block: int = 2
    num_inference_steps: int = 2

    def __post_init__(self) -> None:
        require(
            self.action_block >= 1 and self.horizon >= 1 and self.horizon % self.action_block == 0,
            f"horizon={self.horizon} must be a positive multiple of "
            f"action_block={self.action_block}",
        )
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
        self.solver = solver or CEM()
        self.objective = objective
        self.config = config or MPCConfig()
        self._previous: tuple[int, np.ndarray] | None = None

    def reset(self) -> None:
        """Forget the previous plan."""
        self._previous = None

    def plan(self, imagination: ImaginationWrapper, goal: Goal, seed: int | None = None) -> Plan:
        """Plan from the present moment; see :class:`~sfvgen_planner.planning.Planner`."""
        config = self.config
        objective = self.objective(goal)
        space = cast(gym.spaces.Box, imagination.action_space)
        solver_seed, noise_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))

        def imagine(blocks: torch.Tensor) -> Imagination:
            return imagination.imagine(
                blocks.repeat_interleave(config.action_block, dim=1),
                num_inference_steps=config.num_inference_steps,
                seed=noise_seed,
            )

        solution = self.solver.solve(
            lambda blocks: objective(imagine(blocks)),
            space,
            config.horizon // config.action_block,
            seed=solver_seed,
            initial_mean=self._warm_start(imagination.num_steps, space),
        )
        future = imagine(solution.actions[None])
        actions = solution.actions.repeat_interleave(config.action_block, dim=0).numpy()
        self._previous = imagination.num_steps, actions
        return Plan(
            actions=actions,
            frames=future.frames[0],
            cost=float(objective(future)[0]),
            diagnostics={
                "best_costs": list(solution.best_costs),
                "num_evaluations": solution.num_evaluations,
                "mean_std": float(solution.std.mean()),
            },
        )

    def action(self, plan: Plan, step: int, frame: np.ndarray) -> np.ndarray:
        """The planned action: MPC corrects itself by planning again, not by looking."""
        return plan.actions[step]

    def _warm_start(self, now: int, space: gym.spaces.Box) -> torch.Tensor | None:
        """What is left of the previous plan, then rest, as the blocks to start the search from."""
        if self._previous is None:
            return None
        planned_at, actions = self._previous
        taken = now - planned_at
        if not 0 <= taken < len(actions):
            return None
        rest = np.broadcast_to((space.low + space.high) / 2, (taken, actions.shape[1]))
        shifted = np.concatenate([actions[taken:], rest])
        blocks = shifted.reshape(-1, self.config.action_block, actions.shape[1]).mean(axis=1)
        return torch.as_tensor(blocks, dtype=torch.float32)
