"""Model-predictive control whose model is the simulator itself: what a perfect model would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch

from sfvgen_planner.data.camera import camera_frame
from sfvgen_planner.errors import require
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning.action_search import ActionSearch, SearchConfig
from sfvgen_planner.planning.plan import Goal, Plan
from sfvgen_planner.planning.solvers import Solver

StepCost = Callable[[Any, float, dict[str, Any]], float]
"""Cost of a step, from the unwrapped simulator after it, its reward and its info."""


def negative_reward(simulator: Any, reward: float, info: dict[str, Any]) -> float:
    """The step cost that every environment has."""
    return -reward


class SimulatorPlanner:
    """Search actions whose future in the simulator has the lowest sum of step costs.

    It bounds what a better world model could bring to :class:`~sfvgen_planner.planning.MPCPlanner`.
    Candidates are stepped in the environment that is acted in, which is then set back to the
    present. Its unwrapped environment needs ``get_state()`` and ``set_state(state)`` that hold all
    that decides the rest of an episode; wrappers around it must keep no state of their own.
    A future ends with the episode, or with the instruction that is planned for.

    Args:
        step_cost: by default the reward, negated.
        solver: :class:`~sfvgen_planner.planning.CEM` by default.
        config: horizon and blocks.
    """

    def __init__(
        self,
        step_cost: StepCost = negative_reward,
        solver: Solver | None = None,
        config: SearchConfig | None = None,
    ) -> None:
        self.step_cost = step_cost
        self._search = ActionSearch(solver, config or SearchConfig())

    def reset(self) -> None:
        """Forget the previous plan."""
        self._search.reset()

    def plan(self, imagination: ImaginationWrapper, goal: Goal, seed: int | None = None) -> Plan:
        """Plan from the present moment; see :class:`~sfvgen_planner.planning.Planner`.

        Raises:
            SfvgenError: the environment can't be set to a state.
        """
        env, simulator = imagination.env, cast(Any, imagination.unwrapped)
        require(
            hasattr(simulator, "get_state") and hasattr(simulator, "set_state"),
            f"{simulator} can't serve as a model: it needs get_state() and set_state()",
        )
        present = simulator.get_state()

        def cost(candidates: torch.Tensor) -> torch.Tensor:
            return torch.tensor([follow(actions) for actions in candidates.numpy()])

        def follow(actions: np.ndarray, film: list[np.ndarray] | None = None) -> float:
            simulator.set_state(present)
            total = 0.0
            for action in actions:
                observation, reward, terminated, truncated, info = env.step(action)
                total += self.step_cost(simulator, float(reward), info)
                if film is not None:
                    film.append(camera_frame(env, observation, image_size).copy())
                is_next = isinstance(goal, str) and info.get("instruction", goal) != goal
                if terminated or truncated or is_next:
                    break
            return total

        image_size = imagination.world_model.config.image_size
        space = cast(gym.spaces.Box, imagination.action_space)
        frames: list[np.ndarray] = []
        try:
            solution = self._search.solve(cost, space, imagination.num_steps, seed)
            actions = solution.actions.numpy()
            total = follow(actions, frames)
        finally:
            simulator.set_state(present)
        # A future that ends early is shorter than the horizon, and so is the plan.
        return Plan(actions[: len(frames)], np.stack(frames), total, solution.diagnostics)

    def action(self, plan: Plan, step: int, frame: np.ndarray) -> np.ndarray:
        """The planned action."""
        return plan.actions[step]
