"""Time per plan of every solver, and its ratio to a bare loop of the same rollouts, as JSON.

The dynamics are linear and cheap, so what is measured is the solver's own work. The floor of a
solver draws, for each of its calls of the cost function, as many candidates in one line and rolls
them out; for the gradient solver it also computes the gradient. The MPPI of the pytorch-mppi
package is measured too where it is installed. All are timed in turn, round after round, and the
medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import gymnasium as gym
import torch

from sfvgen_planner.planning import (
    CEM,
    ICEM,
    MPPI,
    CEMConfig,
    Gradient,
    GradientConfig,
    ICEMConfig,
    MPPIConfig,
    RandomShooting,
    RandomShootingConfig,
    Solver,
)

HORIZON = 20
ACTION_SIZE = 4
NUM_SAMPLES = 512
NUM_ITERATIONS = 4
SPACE = gym.spaces.Box(-1, 1, (ACTION_SIZE,))
SOLVERS: dict[str, Solver] = {
    "random_shooting": RandomShooting(RandomShootingConfig(NUM_SAMPLES)),
    "cem": CEM(CEMConfig(NUM_SAMPLES, num_elites=64, num_iterations=NUM_ITERATIONS)),
    "icem": ICEM(ICEMConfig(NUM_SAMPLES, num_elites=64, num_iterations=NUM_ITERATIONS)),
    "mppi": MPPI(MPPIConfig(NUM_SAMPLES, NUM_ITERATIONS)),
    "gradient": Gradient(GradientConfig(NUM_SAMPLES, NUM_ITERATIONS)),
}


def step(state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """The next states ``(N, A)``."""
    return 0.9 * state + 0.1 * action


def state_cost(state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Costs ``(N,)`` of one step."""
    return state.square().sum(-1)


def cost(actions: torch.Tensor) -> torch.Tensor:
    """Costs ``(N,)`` of candidates ``(N, T, A)``."""
    state = torch.ones(len(actions), ACTION_SIZE)
    total = torch.zeros(len(actions))
    for action in actions.unbind(1):
        state = step(state, action)
        total = total + state_cost(state, action)
    return total


def floor(sizes: list[int], with_gradient: bool) -> None:
    """The same rollouts with nothing around them."""
    for size in sizes:
        actions = torch.randn(size, HORIZON, ACTION_SIZE, requires_grad=with_gradient)
        costs = cost(actions)
        if with_gradient:
            torch.autograd.grad(costs.sum(), actions)


def batch_sizes(solver: Solver) -> list[int]:
    """Candidates in each call that a solver makes of the cost function."""
    sizes = []

    def spy(actions: torch.Tensor) -> torch.Tensor:
        sizes.append(len(actions))
        return cost(actions)

    solver.solve(spy, SPACE, HORIZON, seed=0)
    return sizes


def pytorch_mppi() -> Callable[[], None] | None:
    """A plan of pytorch-mppi with the same rollouts; None where it is not installed."""
    try:
        from pytorch_mppi import MPPI as PeerMPPI  # noqa: N811
    except ImportError:
        return None
    peer = PeerMPPI(
        step,
        state_cost,
        ACTION_SIZE,
        noise_sigma=0.25 * torch.eye(ACTION_SIZE),
        num_samples=NUM_SAMPLES,
        horizon=HORIZON,
        lambda_=0.1,
        u_min=-torch.ones(ACTION_SIZE),
        u_max=torch.ones(ACTION_SIZE),
    )

    def plan() -> None:
        for _ in range(NUM_ITERATIONS):
            peer.command(torch.ones(ACTION_SIZE), shift_nominal_trajectory=False)

    return plan


def measure(num_repeats: int, num_threads: int) -> dict[str, object]:
    """Time all solvers and their floors in turn, and return the figures."""
    torch.set_num_threads(num_threads)
    plans: dict[str, Callable[[], object]] = {}
    for name, solver in SOLVERS.items():
        plans[name] = partial(solver.solve, cost, SPACE, HORIZON, seed=0)
        plans[f"{name}_floor"] = partial(floor, batch_sizes(solver), name == "gradient")
    peer = pytorch_mppi()
    if peer is not None:
        plans["pytorch_mppi"] = peer
        plans["pytorch_mppi_floor"] = plans["mppi_floor"]
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for repeat in range(num_repeats + 1):
        for name, plan in plans.items():
            start = time.perf_counter()
            plan()
            if repeat > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "name": "solver_overhead",
        "solvers": {
            name: {
                "seconds": median,
                "floor_seconds": medians[f"{name}_floor"],
                "ratio": median / medians[f"{name}_floor"],
            }
            for name, median in medians.items()
            if not name.endswith("_floor")
        },
        "pytorch_mppi": "not installed: skipped" if peer is None else version("pytorch-mppi"),
        "horizon": HORIZON,
        "num_samples": NUM_SAMPLES,
        "num_iterations": NUM_ITERATIONS,
        "action_size": ACTION_SIZE,
        "num_repeats": num_repeats,
        "num_threads": num_threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, PyTorch {torch.__version__}",
    }


def main() -> None:
    """Parse the command line and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-repeats", type=int, default=200)
    parser.add_argument("--num-threads", type=int, default=1)
    arguments = parser.parse_args()
    print(json.dumps(measure(**vars(arguments)), indent=2))


if __name__ == "__main__":
    main()
