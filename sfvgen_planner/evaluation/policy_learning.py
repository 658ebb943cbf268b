"""Is a policy that was trained in imagination alone as good as one trained in the simulator?

The same algorithm learns the same task with the same observations; only the world that it acts in
differs. Both see through the world model's frozen autoencoder and text encoder. The steps that the
world model was trained on count for imagination; the simulator has its encoders for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit

from sfvgen_planner.data.environment import Environment, make_env
from sfvgen_planner.data.episode import Episode
from sfvgen_planner.data.store import EpisodeStore
from sfvgen_planner.errors import require, require_count
from sfvgen_planner.evaluation.measure import EvaluationConfig, check_choices
from sfvgen_planner.evaluation.outcome_head import required_outcome_head
from sfvgen_planner.evaluation.policy_evaluation import TASK
from sfvgen_planner.evaluation.policy_training import (
    ALGORITHMS,
    RecordedStarts,
    camera_envs,
    read_starts,
    record_starts,
    save,
    train,
)
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.rollout import play, succeeded
from sfvgen_planner.evaluation.statistics import Estimate
from sfvgen_planner.evaluation.tabletop import ENV_ID
from sfvgen_planner.imagination import ObservationEncoder, WorldModelVectorEnv
from sfvgen_planner.imagination.env_checks import check_action_space
from sfvgen_planner.imagination.sb3 import EncodedPolicy, EncodedVecEnv, SB3VecEnv
from sfvgen_planner.imagination.vector_env import DEFAULT_HORIZON
from sfvgen_planner.workers import play_all
from sfvgen_planner.world_model import VideoWorldModel, load_world_model
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from sfvgen_planner.world_model.training_checks import check_model

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


WORLDS = ("none", "imagination", "simulator")
"""That policies are trained in."""


@dataclass(frozen=True)
class PolicyLearningConfig(EvaluationConfig):
    """What is trained, and how long. A step is one action and one video frame of the world model.

    Attributes:
        env: Gymnasium id of what the model was trained in, also ``module:id``.
        env_kwargs: of `gymnasium.make`.
        trained_in: which policies, names of ``WORLDS``; all by default.
        num_test_episodes: held-out episodes that every policy is tested on.
        algorithm: of Stable-Baselines3, one of ``ALGORITHMS``.
        num_training_seeds: policies trained in each way.
        num_start_steps: real steps that collect the frames imagination starts from; whole episodes,
            so a few more.
        start_policy: that makes these steps, as ``make_policy`` takes it.
        start_data: a store whose frames imagination starts from instead. Where it has as many steps
            as the model was trained on it is taken for the same data, which counts once.
        num_imagined_steps: of each policy trained in imagination.
        horizon: steps after which an imagined episode is cut off.
        simulator_budgets: real steps of the policies trained in the simulator, as multiples of
            those that imagination consumed.
        num_worlds: imagined worlds that step together.
        num_simulators: that step together. Few, so that a policy has its effect on what it learns
            from within a small budget.
        num_inference_steps: denoiser calls per imagined frame.
        success_threshold: probability on two frames in a row that ends an imagined episode, where
            success ends one in the environment.
        model_steps: real steps that the world model was trained on; None for what the model tells,
            and where it tells nothing they count as none.
    """

    env: str = ENV_ID
    env_kwargs: Mapping[str, Any] = field(default_factory=lambda: TASK)
    trained_in: tuple[str, ...] = ()
    num_test_episodes: int = 100
    algorithm: str = "SAC"
    num_training_seeds: int = 3
    num_start_steps: int = 20_000
    start_policy: str = "random"
    start_data: str | None = None
    num_imagined_steps: int = 100_000
    horizon: int = DEFAULT_HORIZON
    simulator_budgets: tuple[float, ...] = (1.0, 5.0)
    num_worlds: int = 16
    num_simulators: int = 4
    num_inference_steps: int = 1
    success_threshold: float = 0.9
    model_steps: int | None = None

    def __post_init__(self) -> None:
        algorithms = ((self.algorithm,), tuple(ALGORITHMS))
        check_choices({"algorithm": algorithms, "world": (self.trained_in, WORLDS)})
        for name in (
            "num_test_episodes",
            "num_training_seeds",
            "num_start_steps",
            "num_imagined_steps",
            "horizon",
            "num_worlds",
            "num_simulators",
            "num_inference_steps",
        ):
            require_count(name, getattr(self, name))
        for budget in self.simulator_budgets:
            require(
                0 < budget < float("inf"),
                f"simulator_budgets must be finite and above 0, got {budget}",
            )
        require(
            self.model_steps is None or self.model_steps >= 0,
            f"model_steps must be at least 0, got {self.model_steps}",
        )


class _Run(NamedTuple):
    """One policy to train and test.

    Attributes:
        trained_in: one of ``WORLDS``.
        num_steps: of the training.
        training_seed: of the policy and its worlds.
    """

    trained_in: str
    num_steps: int
    training_seed: int


class _Tested(NamedTuple):
    """What came of a run.

    Attributes:
        num_steps: that the training made.
        values: name of a figure, and the criterion where there are several, to one value per
            episode.
    """

    num_steps: int
    values: dict[tuple[str, str | None], list[float]]


def measure_policy_learning(config: PolicyLearningConfig) -> Iterator[Figure]:
    """Success and reward of policies trained in imagination, in the simulator and not at all.

    A policy trained in imagination has the outcome head's reward and never acts in the simulator:
    the real steps that it consumed are those that the world model was trained on and those that
    recorded its start frames, which all training seeds share. In the simulator it has the
    environment's own reward. In both a step's reward is the sum over the steps of the environment
    that it holds its action for, and success ends an episode where the environment says so.

    Each policy has its rows as soon as it is tested; those over all training seeds follow, whose
    intervals resample episodes and training seeds.

    Raises:
        SfvgenError: the model has no outcome head or does not fit the environment, or the start
            policy or the start data is no good.
    """
    with closing(_Learner(config)) as learner:
        yield from _measure(learner, config)


def _measure(learner: _Learner, config: PolicyLearningConfig) -> Iterator[Figure]:
    model = learner.model
    # Missing, it is told before any work is spent.
    required_outcome_head(config.model)
    check_action_space(learner.env.action_space, model.config.action_low, model.config.action_high)
    model_steps = model.config.data_steps if config.model_steps is None else config.model_steps
    learner.starts, num_start_steps = _starts(config, learner, model_steps)
    consumed = (model_steps or 0) + num_start_steps
    arms = [("none", 0), ("imagination", config.num_imagined_steps)]
    arms += [("simulator", max(1, round(times * consumed))) for times in config.simulator_budgets]
    runs = [
        _Run(*arm, seed)
        for arm in arms
        for seed in range(config.num_training_seeds)
        if arm[0] in (config.trained_in or WORLDS)
    ]
    tested: list[_Tested] = []
    for run, result in zip(runs, play_all(learner, runs, config.num_workers), strict=True):
        imagined = run.trained_in == "imagination"
        fields: dict[str, Any] = {
            "trained_in": run.trained_in,
            "algorithm": config.algorithm,
            "real_steps": consumed if imagined else result.num_steps,
            "imagined_steps": result.num_steps if imagined else 0,
            "model": config.model,
            "model_steps": model_steps,
            "num_worlds": _num_worlds(run, config),
        }
        fields |= _imagined_with(config) if imagined else {}
        fields |= {"env": config.env, "env_kwargs": dict(config.env_kwargs)}
        yield from _figures([result], config, [run.training_seed], fields)
        tested = [*tested, result] if run.training_seed else [result]
        if 1 < len(tested) == config.num_training_seeds:
            yield from _figures(tested, config, range(config.num_training_seeds), fields)


UNITS = {"success_rate": "1", "return": "1", "distance_m": "m"}

FIGURES: dict[str, Callable[[PolicyLearningConfig], Iterable[Figure]]] = dict.fromkeys(
    UNITS, measure_policy_learning
)
"""Figure to the measurement that it comes from: they come from the same episodes."""


def _starts(
    config: PolicyLearningConfig, learner: _Learner, model_steps: int | None
) -> tuple[RecordedStarts, int]:
    """Where imagination begins, and the real steps that this cost beyond the model's own."""
    model = learner.model
    num_past_frames = model.config.num_past_frames
    if config.start_data is None:
        starts = record_starts(
            learner.env,
            config.start_policy,
            config.num_start_steps,
            num_past_frames,
            model.config.image_size,
        )
        return starts, starts.num_steps
    store = EpisodeStore.open(config.start_data)
    check_model(model, store)
    starts = read_starts(store, num_past_frames)
    return starts, 0 if starts.num_steps == model_steps else starts.num_steps


def _num_worlds(run: _Run, config: PolicyLearningConfig) -> int:
    """That step together, imagined or simulated."""
    return config.num_simulators if run.trained_in == "simulator" else config.num_worlds


def _imagined_with(config: PolicyLearningConfig) -> dict[str, Any]:
    policy = {"start_policy": config.start_policy}
    return {
        **(policy if config.start_data is None else {"start_data": config.start_data}),
        "horizon": config.horizon,
        "num_inference_steps": config.num_inference_steps,
        "success_threshold": config.success_threshold,
    }


def _figures(
    tested: Sequence[_Tested],
    config: PolicyLearningConfig,
    training_seeds: Sequence[int],
    fields: Mapping[str, Any],
) -> Iterator[Figure]:
    """The figures of policies that differ in their training seed."""
    seeds = config.seeds(config.num_test_episodes)
    told = {"num_training_seeds": len(training_seeds), "training_seeds": list(training_seeds)}
    for name, criterion in tested[0].values:
        estimate = Estimate.of_runs(np.array([one.values[name, criterion] for one in tested]))
        judged = {} if criterion is None else {"criterion": criterion}
        yield Figure.of_estimate(
            name, estimate, UNITS[name], seeds, config.device, **fields, **told, **judged
        )


class _Learner:
    """Trains policies and tests them; keeps its model and its environment from one to the next.

    Attributes:
        starts: of imagined episodes.
    """

    def __init__(self, config: PolicyLearningConfig) -> None:
        self._config = config
        self.starts: RecordedStarts | None = None

    @cached_property
    def model(self) -> VideoWorldModel:
        """On its device, compiled where that is a GPU."""
        device = self._config.device
        model = load_world_model(self._config.model).to(device)
        if torch.device(device).type == "cuda":
            model.compile()
        return model

    @cached_property
    def head(self) -> OutcomeHead:
        """On its device."""
        return required_outcome_head(self._config.model).to(self._config.device)

    @cached_property
    def env(self) -> Environment:
        """That policies are tested in."""
        config = self._config
        return make_env(config.env, config.env_kwargs, self.model.config.frame_skip)

    def play(self, run: _Run) -> _Tested:
        """Train and test one policy."""
        config, encoder = self._config, ObservationEncoder(self.model)
        what = f"{run.trained_in}, training seed {run.training_seed}"
        if run.trained_in == "simulator":
            envs = camera_envs(self._training_env, config.num_simulators, encoder.image_size)
        else:
            envs = self._worlds()
        agent = train(
            config.algorithm,
            EncodedVecEnv(envs, encoder),
            run.num_steps,
            # No two training seeds share a world's seed.
            seed=run.training_seed * _num_worlds(run, config),
            device=config.device,
            description=what,
        )
        if run.num_steps:
            name = f"{config.model_stem}_{config.algorithm}_{run.trained_in}"
            name += f"_{agent.num_timesteps}_steps_seed_{run.training_seed}.zip"
            save(agent, config.folder / "policies" / name.lower())
        policy = EncodedPolicy(self.env, agent, encoder)
        values: dict[tuple[str, str | None], list[float]] = {}
        seeds = config.seeds(config.num_test_episodes)
        for episode in play(self.env, policy, seeds, f"test of {what}"):
            for key, value in _verdicts(episode).items():
                values.setdefault(key, []).append(value)
        return _Tested(agent.num_timesteps, values)

    def close(self) -> None:
        """Close the environment, and forget what does not travel to other processes."""
        if "env" in self.__dict__:
            self.env.close()
        for name in ("env", "model", "head"):
            self.__dict__.pop(name, None)

    def _worlds(self) -> VecEnv:
        config = self._config
        assert self.starts is not None
        return SB3VecEnv(
            WorldModelVectorEnv(
                self.model,
                self.starts,
                config.num_worlds,
                horizon=config.horizon,
                outcome_head=self.head,
                success_threshold=config.success_threshold,
                num_inference_steps=config.num_inference_steps,
                autoreset_mode=AutoresetMode.SAME_STEP,
            )
        )

    def _training_env(self) -> Environment:
        config = self._config
        frame_skip = self.model.config.frame_skip
        return training_env(config.env, config.env_kwargs, frame_skip, config.horizon)


def training_env(
    env_id: str, env_kwargs: Mapping[str, Any], frame_skip: int, horizon: int
) -> Environment:
    """An environment to learn in: as it is, but to be out of time does not end our own task.

    It is cut off, as in imagination, so that a policy does not learn that time is worth less at the
    end, which its picture does not tell.
    """
    if env_id.rpartition(":")[-1] != ENV_ID:
        return make_env(env_id, env_kwargs, frame_skip)
    never = {"steps_per_instruction": horizon * frame_skip + 1}
    return TimeLimit(make_env(env_id, {**env_kwargs, **never}, frame_skip), horizon)


def _verdicts(episode: Episode) -> dict[tuple[str, str | None], float]:
    """What an episode comes to, as far as the environment tells.

    By its last frame, and by any frame where there is a verdict on each, as it is usual for
    Meta-World.
    """
    by_last = succeeded(episode)
    verdicts: dict[tuple[str, str | None], float] = {("success_rate", "last_frame"): by_last}
    if episode.successes is not None:
        by_any = by_last or bool(episode.successes.any())
        verdicts["success_rate", "any_frame"] = by_any
    verdicts["return", None] = float(episode.rewards.sum())
    if "distance_m" in episode.info:
        verdicts["distance_m", None] = float(episode.info["distance_m"])
    return verdicts
