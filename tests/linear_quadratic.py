"""A double integrator with a quadratic cost, and its optima from linear algebra alone."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

DYNAMICS = np.array([[1.0, 0.5], [0.0, 1.0]])
CONTROL = np.array([[0.125], [0.5]])
STATE_COST = np.diag([1.0, 0.1])
CONTROL_COST = 0.2


class DoubleIntegrator:
    """``x' = A x + B u``, cost ``sum(x' Q x + r u u)`` over the states after each control."""

    def __init__(self, horizon: int = 5, start: tuple[float, float] = (1.0, 0.0)) -> None:
        self.horizon = horizon
        self.start = np.array(start)

    def cost(self, actions: torch.Tensor) -> torch.Tensor:
        """Costs ``(N,)`` of controls ``(N, T, 1)``, by rolling out; differentiable."""
        dynamics, control, state_cost = (
            torch.tensor(matrix, dtype=torch.float32) for matrix in (DYNAMICS, CONTROL, STATE_COST)
        )
        state = torch.tensor(self.start, dtype=torch.float32).expand(len(actions), 2)
        total = torch.zeros(len(actions))
        for action in actions.unbind(1):
            state = state @ dynamics.T + action @ control.T
            total = total + ((state @ state_cost) * state).sum(1) + CONTROL_COST * action[:, 0] ** 2
        return total

    def riccati(self) -> tuple[np.ndarray, float]:
        """The unconstrained optimum ``(T,)`` and its cost, by the Riccati recursion."""
        value = np.zeros((2, 2))
        gains = []
        for _ in range(self.horizon):
            after = value + STATE_COST
            gain = np.linalg.solve(
                CONTROL_COST + CONTROL.T @ after @ CONTROL, CONTROL.T @ after @ DYNAMICS
            )
            value = DYNAMICS.T @ after @ (DYNAMICS - CONTROL @ gain)
            gains.append(gain)
        state, controls = self.start, []
        for gain in reversed(gains):
            controls.append(-gain @ state)
            state = DYNAMICS @ state + CONTROL @ controls[-1]
        return np.concatenate(controls), float(self.start @ value @ self.start)

    def clamped(self, limit: float) -> np.ndarray:
        """The optimum ``(T,)`` with all controls in ``[-limit, limit]``.

        By brute force: every control is at one of the limits or free, the free ones solve a linear
        system, and the best of the feasible answers is the optimum.
        """
        hessian, slope = self._quadratic()
        best, best_cost = np.zeros(self.horizon), np.inf
        for choice in product((-limit, np.nan, limit), repeat=self.horizon):
            controls = np.array(choice)
            free = np.isnan(controls)
            fixed = hessian[np.ix_(free, ~free)] @ controls[~free]
            controls[free] = np.linalg.solve(hessian[np.ix_(free, free)], -slope[free] - fixed)
            cost = controls @ hessian @ controls / 2 + slope @ controls
            if np.abs(controls).max() <= limit + 1e-9 and cost < best_cost:
                best, best_cost = controls, cost
        return best

    def _quadratic(self) -> tuple[np.ndarray, np.ndarray]:
        """Hessian and slope at 0 of the cost as a function of all controls."""
        hessian = 2 * CONTROL_COST * np.eye(self.horizon)
        slope = np.zeros(self.horizon)
        for step in range(1, self.horizon + 1):
            power = np.linalg.matrix_power
            effect = np.zeros((2, self.horizon))
            for k in range(step):
                effect[:, k] = (power(DYNAMICS, step - 1 - k) @ CONTROL)[:, 0]
            hessian += 2 * effect.T @ STATE_COST @ effect
            slope += 2 * effect.T @ STATE_COST @ power(DYNAMICS, step) @ self.start
        return hessian, slope
