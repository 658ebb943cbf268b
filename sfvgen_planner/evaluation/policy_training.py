"""Stable-Baselines3 in imagined worlds and in simulators, seen through the same eyes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import count
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from sfvgen_policies import Policy, make_policy
from tqdm import tqdm

from sfvgen_planner.data.camera import camera_frame
from sfvgen_planner.data.environment import Environment
from sfvgen_planner.data.episode import EpisodeSource
from sfvgen_planner.data.rollout import record_episode
from sfvgen_planner.data.store import EpisodeStore
from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.files import prepare_folder, replacing
from sfvgen_planner.imagination import Start
from sfvgen_planner.imagination.sb3 import EncodedVecEnv

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

TRAINING_SEED = 1_000_000
"""First seed of the episodes whose frames imagination starts from, beyond all held-out ones."""
_PPO_ROLLOUT, _PPO_BATCH = 2048, 64
"""Steps of all worlds together; Stable-Baselines3's own numbers, which are for one world."""
_SAC_BUFFER = 1_000_000


def _ppo_settings(num_steps: int, num_envs: int) -> dict[str, Any]:
    # Rollouts of one size fill the budget, and mini-batches of one size each rollout.
    num_rollouts = ceil(num_steps / _PPO_ROLLOUT)
    length = max(2, ceil(num_steps / (num_rollouts * num_envs)))
    num_batches = ceil(length / ceil(_PPO_BATCH / num_envs))
    batch_length = ceil(length / num_batches)
    return {"n_steps": num_batches * batch_length, "batch_size": batch_length * num_envs}


def _sac_settings(num_steps: int, num_envs: int) -> dict[str, Any]:
    # As many updates as steps, however many worlds step together.
    return {"buffer_size": max(num_envs, min(num_steps, _SAC_BUFFER)), "gradient_steps": -1}


ALGORITHMS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "SAC": _sac_settings,
    "PPO": _ppo_settings,
}
"""Name in Stable-Baselines3 to what is set for a number of steps, in so many worlds at once.

All else is as Stable-Baselines3 has it, but for rewards, which are divided by the standard
deviation of the returns so far.
"""


class RecordedStarts:
    """Moments of recorded episodes, all equally likely.

    Each has an instruction, because nothing is rewarded without one, and as many frames behind it
    as the model takes: so all worlds step in one call of the model.

    Args:
        episodes: frames ``(T + 1, H, W, 3)`` uint8 and the T instructions of each.
        num_past_frames: frames of a start.

    Attributes:
        num_steps: real steps that it took to record the episodes.

    Raises:
        SfvgenError: there is no such moment.
    """

    def __init__(
        self, episodes: Iterable[tuple[np.ndarray, Sequence[str]]], num_past_frames: int
    ) -> None:
        self._num_past_frames = num_past_frames
        self._frames: list[np.ndarray] = []
        self._moments: list[tuple[int, int, str]] = []
        self.num_steps = 0
        for index, (frames, instructions) in enumerate(episodes):
            self._frames.append(frames)
            self.num_steps += len(instructions)
            self._moments += [
                (index, now, told)
                for now, told in enumerate(instructions)
                if told and now + 1 >= num_past_frames
            ]
        require(
            bool(self._moments),
            f"none of the recorded episodes has {num_past_frames} steps and an instruction, which "
            "a start needs; record more, longer or other ones",
        )

    def __len__(self) -> int:
        """The number of different starts."""
        return len(self._moments)

    def __getitem__(self, number: int) -> Start:
        """Start ``number``, in the order of episodes and frames."""
        index, now, told = self._moments[number]
        return Start(self._frames[index][now + 1 - self._num_past_frames : now + 1], told)

    def __call__(self, rng: np.random.Generator) -> Start:
        """Draw a start."""
        return self[int(rng.integers(len(self)))]


class _Listening:
    """Another policy, recorded with what was asked: the one that learns shall do it."""

    follows_instructions = True

    def __init__(self, policy: Policy) -> None:
        self.reset, self.act = policy.reset, policy.act


def record_starts(
    env: Environment, policy: str, num_steps: int, num_past_frames: int, image_size: int
) -> RecordedStarts:
    """Play whole episodes until ``num_steps`` steps were made, and start at their frames.

    Args:
        env: gives instructions; each start has the one of its moment.
        policy: as ``make_policy`` takes it.
        num_steps: at least so many.
        num_past_frames: frames of a start.
        image_size: of the frames.

    Raises:
        SfvgenError: the policy is no good, or its episodes hold no start.
    """
    try:
        actor = _Listening(make_policy(policy, env))
    except ValueError as error:
        raise SfvgenError(f"start frames cannot be recorded: {error}") from error
    episodes: list[tuple[np.ndarray, Sequence[str]]] = []
    num_recorded = 0
    with tqdm(total=num_steps, desc="start frames", unit="step", dynamic_ncols=True) as progress:
        for seed in count(TRAINING_SEED):
            episode = record_episode(env, actor, seed, EpisodeSource(), image_size)
            episodes.append((episode.frames, episode.instructions))
            num_recorded += len(episode)
            progress.update(len(episode))
            if num_recorded >= num_steps:
                break
    return RecordedStarts(episodes, num_past_frames)


def read_starts(store: EpisodeStore, num_past_frames: int) -> RecordedStarts:
    """Start at the frames of episodes that are recorded already.

    Args:
        store: of the same environment; episodes of a policy that does not listen have no
            instruction and so no starts.
        num_past_frames: frames of a start.

    Raises:
        SfvgenError: the store is damaged, or holds no start.
    """
    episodes = ((episode.frames, episode.instructions) for episode in store)
    return RecordedStarts(episodes, num_past_frames)


class CameraObservation(gym.ObservationWrapper[np.ndarray, np.ndarray, Any]):
    """Show the camera's picture ``(size, size, 3)`` uint8 alone."""

    def __init__(self, env: Environment, image_size: int) -> None:
        super().__init__(env)
        self._image_size = image_size
        self.observation_space = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)

    def observation(self, observation: Any) -> np.ndarray:
        """The picture, whatever else was observed."""
        return camera_frame(self.env, observation, self._image_size)


def camera_envs(make: Callable[[], Environment], num_envs: int, image_size: int) -> VecEnv:
    """Real environments that show their camera's picture, in Stable-Baselines3's vector format."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    return DummyVecEnv([lambda: CameraObservation(make(), image_size) for _ in range(num_envs)])


def train(
    algorithm: str,
    envs: EncodedVecEnv,
    num_steps: int,
    seed: int,
    device: str,
    description: str = "",
) -> BaseAlgorithm:
    """Train a policy with Stable-Baselines3, with a progress bar.

    Args:
        algorithm: one of ``ALGORITHMS``.
        envs: closed at the end, whatever happens.
        num_steps: of all worlds together; rounded up to whole steps or rollouts, so ask the result
            for its ``num_timesteps``. 0 leaves the policy untrained.
        seed: of the policy and of the first world; the others have the numbers that follow.
        device: of the policy.
        description: of the progress bar.
    """
    import stable_baselines3
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import VecNormalize

    with closing(envs):
        agent: BaseAlgorithm = getattr(stable_baselines3, algorithm)(
            "MultiInputPolicy",
            # An environment may pay a thousandth or a thousand, and networks learn neither well.
            VecNormalize(envs, norm_obs=False),
            seed=seed,
            device=device,
            **ALGORITHMS[algorithm](max(1, num_steps), envs.num_envs),
        )
        # The default one makes a folder for each training, even where nothing is logged.
        agent.set_logger(Logger(folder=None, output_formats=[]))
        if num_steps:
            with tqdm(total=num_steps, desc=description, unit="step", dynamic_ncols=True) as bar:

                def show(*_: Any) -> bool:
                    bar.update(agent.num_timesteps - bar.n)
                    return True

                agent.learn(num_steps, callback=show)
    return agent


def save(agent: BaseAlgorithm, path: Path) -> None:
    """Write a policy as Stable-Baselines3's ``.zip`` file, in one go."""
    prepare_folder(path.parent)
    with replacing(path) as temporary:
        agent.save(temporary)
