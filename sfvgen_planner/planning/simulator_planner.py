"""Model-predictive control whose model is the simulator itself: what a perfect model would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import NormalizeReward

from sfvgen_planner.data.camera import camera_frame
from sfvgen_planner.errors import require
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning.action_search import ActionSearch, SearchConfig
from sfvgen_planner.planning.plan import Goal, Plan
from sfvgen_planner.planning.solvers import Solver


@runtime_checkable
class Simulator(Protocol):
    """An environment that can be set back, and stepped without drawing a picture."""

    def get_state(self) -> Any:
        """All that decides the rest of the episode."""

    def set_state(self, state: Any) -> None:
        """Continue from a state."""

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """What ``step`` returns, without the observation."""


StepCost = Callable[[Any, float, dict[str, Any]], float]
"""Cost of a step, from the simulator after it, its reward and its info."""


def negative_reward(simulator: Any, reward: float, info: dict[str, Any]) -> float:
    """The step cost that every environment has."""
    return -reward


class SimulatorPlanner:
    """Search actions whose future in the simulator has the lowest sum of step costs.

    It bounds what a better world model could bring to :class:`~sfvgen_planner.planning.MPCPlanner`.
    Candidates are stepped in the environment that is acted in, which is then set back to the
    present. It is stepped beneath the wrappers around it, so those that count steps, such as
    ``TimeLimit``, do not count these; their limits are not foreseen. Wrappers must leave actions
    and rewards as they are: Gymnasium's own that change them are refused, but another ``step`` of
    your own wrapper goes unnoticed. A future ends with the episode, or with the instruction that is
    planned for.

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

    def reset(self, imagination: ImaginationWrapper | None = None) -> None:
        """Forget the previous plan of one imagination, or of all."""
        self._search.reset(imagination)

    def plan(self, imagination: ImaginationWrapper, goal: Goal, seed: int | None = None) -> Plan:
        """Plan from the present moment; see :class:`~sfvgen_planner.planning.Planner`.

        Raises:
            SfvgenError: the unwrapped environment is no :class:`Simulator`, one step of the
                wrapped one is several of its own, or a wrapper changes actions or rewards.
        """
        simulator = cast(object, imagination.unwrapped)
        require(
            isinstance(simulator, Simulator),
            f"{simulator} can't serve as a model: it needs get_state(), set_state() and advance()",
        )
        assert isinstance(simulator, Simulator)
        frame_skip = imagination.world_model.config.frame_skip
        require(frame_skip == 1, f"the simulator plans single steps, but frame_skip={frame_skip}")
        _refuse_translators(imagination.env)
        present = simulator.get_state()

        def cost(candidates: torch.Tensor) -> torch.Tensor:
            costs = []
            for actions in candidates[0].numpy():
                simulator.set_state(present)
                costs.append(self._follow(simulator, actions, goal)[0])
            return torch.tensor([costs], dtype=torch.float64)

        try:
            (solution,) = self._search.solve(cost, [imagination], [seed])
            simulator.set_state(present)
            total, length = self._follow(simulator, solution.actions.numpy(), goal)
            simulator.set_state(present)
            # A future that ends early is shorter than the horizon, and so is the plan.
            actions = solution.actions.numpy()[:length]
            frames = np.stack([_look(imagination, action) for action in actions])
        finally:
            simulator.set_state(present)
        return Plan(actions, frames, total, solution.diagnostics)

    def action(self, plan: Plan, step: int, frame: np.ndarray) -> np.ndarray:
        """The planned action."""
        return plan.actions[step]

    def _follow(self, simulator: Simulator, actions: np.ndarray, goal: Goal) -> tuple[float, int]:
        """Cost of actions ``(T, A)`` from the simulator's state on, and how many could be taken."""
        cost, count = 0.0, 0
        for action in actions:
            count += 1
            reward, terminated, truncated, info = simulator.advance(action)
            cost += self.step_cost(simulator, reward, info)
            is_next = isinstance(goal, str) and info.get("instruction", goal) != goal
            if terminated or truncated or is_next:
                break
        return cost, count


def _refuse_translators(env: gym.Env[Any, Any]) -> None:
    """Refuse wrappers without which the search would see other actions or rewards."""
    while isinstance(env, gym.Wrapper):
        require(
            not isinstance(env, gym.ActionWrapper | gym.RewardWrapper | NormalizeReward),
            f"the simulator plans without the wrappers around it, but {type(env).__name__} changes "
            "actions or rewards: remove it",
        )
        env = env.env


def _look(imagination: ImaginationWrapper, action: np.ndarray) -> np.ndarray:
    """The frame after a step that no wrapper counts."""
    env = imagination.env
    observation = _observed(env, env.unwrapped.step(action)[0])
    return camera_frame(env, observation, imagination.world_model.config.image_size).copy()


def _observed(env: gym.Env[Any, Any], observation: Any) -> Any:
    """What the wrappers of an environment make of its own observation."""
    if not isinstance(env, gym.Wrapper):
        return observation
    observation = _observed(env.env, observation)
    return env.observation(observation) if isinstance(env, gym.ObservationWrapper) else observation
