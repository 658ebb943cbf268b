"""What a solver costs beside its rollouts: time per plan over that of a bare loop.

Three dynamics are planned in: linear ones, next to nothing, where all that a solver does shows; a
small network, as cheap as learned dynamics get; and one with layers as wide as those of PETS (200;
Chua et al., 2018). The floor of a solver draws, for each of its calls of the cost function, as
many candidates in one line and rolls them out, those of all environments in one batch; the solvers
take them in batches of `MAX_BATCH_SIZE`. For the gradient solver the floor also computes the
gradient. Planners of pytorch-mppi and TorchRL are measured on the same
problems where they are installed. All are timed in turn, round after round, the floor before its
solver in one round and after it in the next; a ratio is that of one round.

    python benchmarks/solver_overhead.py --out results/solvers.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

from sfvgen_planner.evaluation.results import Figure, merge_figures
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
)
from sfvgen_planner.planning.solvers import BatchSolver

HORIZON = 20
ACTION_SIZE = 4
NUM_SAMPLES = 512
NUM_ELITES = 64
NUM_ITERATIONS = 4
TEMPERATURE = 0.1
MAX_BATCH_SIZE = 2048
NUM_ENVS = (1, 16)
SPACE = gym.spaces.Box(-1, 1, (ACTION_SIZE,))
_CEM = {"num_samples": NUM_SAMPLES, "num_elites": NUM_ELITES, "num_iterations": NUM_ITERATIONS}
SOLVERS: dict[str, BatchSolver] = {
    "random_shooting": RandomShooting(RandomShootingConfig(NUM_SAMPLES, MAX_BATCH_SIZE)),
    "cem": CEM(CEMConfig(**_CEM, max_batch_size=MAX_BATCH_SIZE)),
    "icem": ICEM(ICEMConfig(**_CEM, max_batch_size=MAX_BATCH_SIZE)),
    "mppi": MPPI(
        MPPIConfig(NUM_SAMPLES, NUM_ITERATIONS, TEMPERATURE, max_batch_size=MAX_BATCH_SIZE)
    ),
    "gradient": Gradient(
        GradientConfig(NUM_SAMPLES, NUM_ITERATIONS, max_batch_size=MAX_BATCH_SIZE)
    ),
}
OURS = "sfvgen-planner"

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""The next states ``(..., A)`` from states and actions of that shape."""
Plan = Callable[[], object]


def linear(state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Dynamics that cost next to nothing."""
    return 0.9 * state + 0.1 * action


def network(hidden_size: int) -> Step:
    """Dynamics of a network with two hidden layers."""
    torch.manual_seed(0)
    sizes = (2 * ACTION_SIZE, hidden_size, hidden_size, ACTION_SIZE)
    first, second, third = (
        torch.randn(inputs, outputs) / inputs**0.5 for inputs, outputs in pairwise(sizes)
    )

    def step(state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(torch.cat([state, action], dim=-1) @ first)
        return state + 0.1 * torch.tanh(hidden @ second) @ third

    return step


DYNAMICS: dict[str, Step] = {
    "linear": linear,
    "network": network(64),
    "wide network": network(200),
}


def state_cost(state: torch.Tensor) -> torch.Tensor:
    """Costs ``(...)`` of states ``(..., A)``."""
    return state.square().sum(-1)


def cost(step: Step, actions: torch.Tensor) -> torch.Tensor:
    """Costs ``(...)`` of candidates ``(..., T, A)``, from a state of ones."""
    state = torch.ones_like(actions[..., 0, :])
    total = torch.zeros(actions.shape[:-2])
    for action in actions.unbind(-2):
        state = step(state, action)
        total = total + state_cost(state)
    return total


def floor(step: Step, num_envs: int, sizes: list[int], with_gradient: bool) -> None:
    """The same rollouts with nothing around them."""
    for size in sizes:
        actions = torch.randn(num_envs, size, HORIZON, ACTION_SIZE, requires_grad=with_gradient)
        costs = cost(step, actions)
        if with_gradient:
            torch.autograd.grad(costs.sum(), actions)


def batch_sizes(solver: BatchSolver) -> list[int]:
    """Candidates of one environment in each call that a solver makes of the cost function."""
    sizes = []

    def spy(actions: torch.Tensor) -> torch.Tensor:
        sizes.append(len(actions))
        return cost(linear, actions)

    solver.solve(spy, SPACE, HORIZON, seed=0)
    return sizes


def our_plans(step: Step, num_envs: int) -> Iterator[tuple[str, str, Plan]]:
    """Solver, library and a plan for each environment."""
    seeds = range(num_envs)
    for name, solver in SOLVERS.items():
        yield name, OURS, partial(solver.solve_batch, partial(cost, step), SPACE, HORIZON, seeds)


def pytorch_mppi_plans(step: Step, num_envs: int) -> Iterator[tuple[str, str, Plan]]:
    """The MPPI of pytorch-mppi, which plans for one environment."""
    try:
        from pytorch_mppi import MPPI as PeerMPPI  # noqa: N811
    except ImportError:
        return
    if num_envs > 1:
        return
    peer = PeerMPPI(
        step,
        lambda state, action: state_cost(state),
        ACTION_SIZE,
        noise_sigma=0.25 * torch.eye(ACTION_SIZE),
        num_samples=NUM_SAMPLES,
        horizon=HORIZON,
        lambda_=TEMPERATURE,
        u_min=-torch.ones(ACTION_SIZE),
        u_max=torch.ones(ACTION_SIZE),
    )

    def plan() -> None:
        for _ in range(NUM_ITERATIONS):
            peer.command(torch.ones(ACTION_SIZE), shift_nominal_trajectory=False)

    yield "mppi", "pytorch-mppi", plan


def torchrl_plans(step: Step, num_envs: int) -> Iterator[tuple[str, str, Plan]]:
    """The CEM and MPPI planners of TorchRL."""
    try:
        from tensordict import TensorDict
        from tensordict.nn import TensorDictModule
        from torchrl.data import Composite, Unbounded
        from torchrl.envs import ModelBasedEnvBase
        from torchrl.modules import CEMPlanner, MPPIPlanner, WorldModelWrapper
        from torchrl.objectives.value import TDLambdaEstimator
    except ImportError:
        return

    class World(ModelBasedEnvBase):
        """The same dynamics and costs."""

        def __init__(self) -> None:
            super().__init__(
                WorldModelWrapper(
                    TensorDictModule(step, in_keys=["state", "action"], out_keys=["state"]),
                    TensorDictModule(
                        lambda state: -state_cost(state)[..., None],
                        in_keys=["state"],
                        out_keys=["reward"],
                    ),
                ),
                batch_size=[],
            )
            numbers = Unbounded((ACTION_SIZE,))
            self.observation_spec = Composite(state=numbers)
            self.state_spec = Composite(state=numbers.clone())
            self.action_spec = numbers.clone()
            self.reward_spec = Unbounded((1,))
            # A planner steps as many copies as it has candidates.
            self._batch_locked = False

        def _reset(self, tensordict: Any) -> Any:
            return TensorDict({"state": torch.ones(ACTION_SIZE)}, [])

    world = World()
    no_value = TensorDictModule(
        lambda state: torch.zeros_like(state[..., :1]), in_keys=["state"], out_keys=["state_value"]
    )
    planners = {
        "cem": CEMPlanner(world, HORIZON, NUM_ITERATIONS, NUM_SAMPLES, NUM_ELITES),
        "mppi": MPPIPlanner(
            world,
            TDLambdaEstimator(gamma=1.0, lmbda=1.0, value_network=no_value),
            TEMPERATURE,
            HORIZON,
            NUM_ITERATIONS,
            NUM_SAMPLES,
            NUM_ELITES,
        ),
    }
    for name, planner in planners.items():
        yield name, "torchrl", partial(_torchrl_plan, planner, world, num_envs)


def _torchrl_plan(planner: Any, world: Any, num_envs: int) -> None:
    planner(world.reset().expand(num_envs).clone())


def measure(num_rounds: int) -> Iterator[Figure]:
    """Time all planners and their floors in turn."""
    libraries = (our_plans, pytorch_mppi_plans, torchrl_plans)
    for dynamics, step in DYNAMICS.items():
        for num_envs in NUM_ENVS:
            plans = [found for plans in libraries for found in plans(step, num_envs)]
            floors = {
                name: partial(floor, step, num_envs, batch_sizes(solver), name == "gradient")
                for name, solver in SOLVERS.items()
            }
            rounds = tqdm(range(num_rounds + 1), f"{dynamics}, {num_envs} environments")
            # The first round warms up.
            times = np.array([_round(plans, floors, number % 2 == 0) for number in rounds])[1:]
            for (name, library, _), seconds, bare in zip(
                plans, *times.transpose(1, 2, 0), strict=True
            ):
                for figure, values, unit in (
                    ("overhead_ratio", seconds / bare, "1"),
                    ("seconds_per_plan", seconds, "s"),
                ):
                    yield Figure.measured(
                        figure,
                        values,
                        unit,
                        range(num_rounds),
                        solver=name,
                        library=library,
                        num_envs=num_envs,
                        dynamics=dynamics,
                        horizon=HORIZON,
                        num_samples=NUM_SAMPLES,
                        num_iterations=NUM_ITERATIONS,
                        max_batch_size=MAX_BATCH_SIZE if library == OURS else None,
                        num_threads=torch.get_num_threads(),
                    )


def _round(
    plans: list[tuple[str, str, Plan]], floors: dict[str, Plan], floor_first: bool
) -> tuple[list[float], list[float]]:
    """Seconds of each plan and of its floor, which follow each other in either order.

    The second of the two finds the processor's caches filled by the first.
    """
    seconds, bare = [], []
    for name, _, plan in plans:
        if floor_first:
            bare.append(_seconds(floors[name]))
            seconds.append(_seconds(plan))
        else:
            seconds.append(_seconds(plan))
            bare.append(_seconds(floors[name]))
    return seconds, bare


def _seconds(work: Plan) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Parse the command line, measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/solvers.json"))
    parser.add_argument("--num-rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for figure in measure(arguments.num_rounds):
        merge_figures(arguments.out, [figure])
        if figure.name == "overhead_ratio":
            low, high = figure.ci95
            told = " ".join(str(figure.fields[key]) for key in ("solver", "library", "dynamics"))
            print(f"{told} {figure.fields['num_envs']}: {figure.value:.2f} [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    main()
