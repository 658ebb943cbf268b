"""Is a policy that was trained in imagination alone as good as one trained in the simulator?

The same algorithm learns the same task with the same observations; only the world that it acts in
differs. Both see through the world model's frozen autoencoder and text encoder, so both owe
something to the real steps that the world model was trained on (``model_steps``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit

from sfvgen_planner.data.environment import Environment, make_env
from sfvgen_planner.errors import require
from sfvgen_planner.evaluation.measure import EvaluationConfig, check_choices
from sfvgen_planner.evaluation.outcome_head import required_outcome_head
from sfvgen_planner.evaluation.policy_evaluation import TASK
from sfvgen_planner.evaluation.policy_training import (
    ALGORITHMS,
    EncodedPolicy,
    camera_envs,
    record_starts,
    save,
    train,
)
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.rollout import play, succeeded
from sfvgen_planner.evaluation.statistics import Estimate
from sfvgen_planner.evaluation.tabletop import ENV_ID, recall_distance_m
from sfvgen_planner.imagination import ObservationEncoder, WorldModelVectorEnv
from sfvgen_planner.imagination.sb3 import EncodedVecEnv, SB3VecEnv
from sfvgen_planner.imagination.vector_env import DEFAULT_HORIZON
from sfvgen_planner.imagination.wrapper import check_action_space, check_frame_skip
from sfvgen_planner.world_model import load_world_model

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


@dataclass(frozen=True)
class PolicyLearningConfig(EvaluationConfig):
    """What is trained, and how long.

    Attributes:
        num_test_episodes: held-out episodes that every policy is tested on.
        algorithm: of Stable-Baselines3, one of ``ALGORITHMS``.
        num_training_seeds: policies trained in each way.
        num_start_steps: real steps that collect the frames imagination starts from; whole episodes,
            so a few more.
        start_policy: that makes these steps, as ``make_policy`` takes it.
        num_imagined_steps: of each policy trained in imagination.
        simulator_budgets: real steps of the policies trained in the simulator, as multiples of
            those that imagination consumed.
        num_worlds: that step together, imagined and simulated ones alike.
        num_inference_steps: denoiser calls per imagined frame.
        success_threshold: probability on two frames in a row that ends an imagined episode.
        model_steps: real steps that the world model was trained on, for the record; None where
            nobody knows.
    """

    num_test_episodes: int = 100
    algorithm: str = "SAC"
    num_training_seeds: int = 3
    num_start_steps: int = 20_000
    start_policy: str = "random"
    num_imagined_steps: int = 100_000
    simulator_budgets: tuple[float, ...] = (1.0, 5.0)
    num_worlds: int = 16
    num_inference_steps: int = 1
    success_threshold: float = 0.9
    model_steps: int | None = None

    def __post_init__(self) -> None:
        check_choices({"algorithm": ((self.algorithm,), tuple(ALGORITHMS))})
        for name in (
            "num_test_episodes",
            "num_training_seeds",
            "num_start_steps",
            "num_imagined_steps",
            "num_worlds",
            "num_inference_steps",
        ):
            number = getattr(self, name)
            require(number >= 1, f"{name} must be at least 1, got {number}")
        for budget in self.simulator_budgets:
            require(
                0 < budget < float("inf"),
                f"simulator_budgets must be finite and above 0, got {budget}",
            )
        require(
            self.model_steps is None or self.model_steps >= 0,
            f"model_steps must be at least 0, got {self.model_steps}",
        )


@dataclass(frozen=True)
class _Arm:
    """One way to come by a policy.

    Attributes:
        trained_in: ``"none"``, ``"imagination"`` or ``"simulator"``.
        num_steps: of the training.
        make_envs: what it is trained in, or at least made for.
        settings: what its figures tell beyond those of all arms.
    """

    trained_in: str
    num_steps: int
    make_envs: Callable[[], VecEnv]
    settings: dict[str, Any] = field(default_factory=dict)


def measure_policy_learning(config: PolicyLearningConfig) -> Iterator[Figure]:
    """Success and metres left of policies trained in imagination, in the simulator and not at all.

    A policy trained in imagination has the outcome head's reward and never acts in the simulator:
    the real steps that it consumed are those that recorded its start frames, which all training
    seeds share. In the simulator it has the environment's own reward. In both an episode ends with
    success, or is cut off after as many steps as the environment gives an instruction.

    Each policy has its rows as soon as it is tested; those over all training seeds follow, whose
    intervals resample episodes and training seeds.

    Raises:
        SfvgenError: the model has no outcome head or does not fit the environment, or the start
            policy is no good.
    """
    head = required_outcome_head(config.model).to(config.device)
    model = load_world_model(config.model).to(config.device)
    if torch.device(config.device).type == "cuda":
        model.compile()
    encoder = ObservationEncoder(model)
    with closing(make_env(ENV_ID, TASK)) as env:
        check_action_space(env.action_space, model.config.action_low, model.config.action_high)
        check_frame_skip(env, model.config.frame_skip)
        starts = record_starts(
            env,
            config.start_policy,
            config.num_start_steps,
            model.config.num_past_frames,
            encoder.image_size,
        )

        def worlds() -> VecEnv:
            return SB3VecEnv(
                WorldModelVectorEnv(
                    model,
                    starts,
                    config.num_worlds,
                    horizon=DEFAULT_HORIZON,
                    outcome_head=head,
                    success_threshold=config.success_threshold,
                    num_inference_steps=config.num_inference_steps,
                    autoreset_mode=AutoresetMode.SAME_STEP,
                )
            )

        def simulators() -> VecEnv:
            return camera_envs(_training_env, config.num_worlds, encoder.image_size)

        imagined_with = {
            "start_policy": config.start_policy,
            "num_inference_steps": config.num_inference_steps,
            "success_threshold": config.success_threshold,
        }
        budgets = [round(budget * starts.num_steps) for budget in config.simulator_budgets]
        for arm in (
            _Arm("none", 0, worlds),
            _Arm("imagination", config.num_imagined_steps, worlds, imagined_with),
            *(_Arm("simulator", max(1, budget), simulators) for budget in budgets),
        ):
            yield from _measure_arm(arm, config, env, encoder, starts.num_steps)


UNITS = {"success_rate": "1", "distance_m": "m"}

FIGURES: dict[str, Callable[[PolicyLearningConfig], Iterable[Figure]]] = dict.fromkeys(
    UNITS, measure_policy_learning
)
"""Figure to the measurement that it comes from: they come from the same episodes."""


def _measure_arm(
    arm: _Arm,
    config: PolicyLearningConfig,
    env: Environment,
    encoder: ObservationEncoder,
    num_start_steps: int,
) -> Iterator[Figure]:
    """Train and test one policy per training seed."""
    seeds = config.seeds(config.num_test_episodes)
    runs: dict[int, list[tuple[float, float]]] = {}
    fields: dict[str, Any] = {}

    def figures(*training_seeds: int) -> Iterator[Figure]:
        told = {"num_training_seeds": len(training_seeds), "training_seeds": list(training_seeds)}
        values = np.array([runs[one] for one in training_seeds])
        for column, (name, unit) in enumerate(UNITS.items()):
            estimate = Estimate.of_runs(values[:, :, column])
            yield Figure.of_estimate(
                name, estimate, unit, seeds, config.device, **fields, **told, **arm.settings, **TASK
            )

    for training_seed in range(config.num_training_seeds):
        what = f"{arm.trained_in}, training seed {training_seed}"
        agent = train(
            config.algorithm,
            EncodedVecEnv(arm.make_envs(), encoder),
            arm.num_steps,
            # No two training seeds share a world's seed.
            seed=training_seed * config.num_worlds,
            device=config.device,
            description=what,
        )
        consumed = {"none": 0, "imagination": num_start_steps, "simulator": agent.num_timesteps}
        fields = {
            "trained_in": arm.trained_in,
            "algorithm": config.algorithm,
            "real_steps": consumed[arm.trained_in],
            "imagined_steps": agent.num_timesteps if arm.trained_in == "imagination" else 0,
            "model": config.model,
            "model_steps": config.model_steps,
            "num_worlds": config.num_worlds,
        }
        if arm.num_steps:
            name = f"{Path(config.model).name}_{config.algorithm}_{arm.trained_in}"
            name += f"_{agent.num_timesteps}_steps_seed_{training_seed}.zip"
            save(agent, config.folder / "policies" / name.lower())
        policy = EncodedPolicy(env, agent, encoder)
        runs[training_seed] = [
            (float(succeeded(episode)), recall_distance_m(episode))
            for episode in play(env, policy, seeds, f"test of {what}")
        ]
        yield from figures(training_seed)
    if len(runs) > 1:
        yield from figures(*runs)


def _training_env() -> Environment:
    """The task, but to be out of time does not end it: as in imagination, it is cut off."""
    never = {"steps_per_instruction": DEFAULT_HORIZON + 1}
    return TimeLimit(make_env(ENV_ID, TASK | never), DEFAULT_HORIZON)
