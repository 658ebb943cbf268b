"""Stable-Baselines3 models as policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium as gym
import numpy as np


class SB3Model(Protocol):
    """What is needed of a Stable-Baselines3 algorithm: PPO, SAC, RecurrentPPO and so on."""

    observation_space: gym.spaces.Space[Any]
    action_space: gym.spaces.Space[Any]

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Actions, and the state of recurrent models."""

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the random choices."""


class SB3Policy:
    """Act as a Stable-Baselines3 model does; the words are not told to it.

    A model that learnt from plain pictures, such as one trained in imagined worlds, takes the
    ``"image"`` of a Dict observation. Where training normalised the observations (``VecNormalize``)
    that is for the environment to do here too. One that learnt on an ``EncodedVecEnv`` acts as
    ``EncodedPolicy``, both of ``sfvgen_planner.imagination.sb3``.

    There is no loading from a file here, on purpose: Stable-Baselines3's ``.zip`` files hold
    pickles, which can run any code when they are opened. Give a model that is in memory, or take
    ``load_sb3`` of ``sfvgen_planner.imagination.sb3_file``, which opens no pickle. SB3's own
    ``load`` is for files that you made yourself.

    Args:
        env: environment that it will act in.
        model: a trained model.
        deterministic: the most likely action instead of one drawn at random. Drawn actions are
            repeatable: ``reset(seed)`` seeds the model, and so PyTorch's global generator.
        observation_space: of what ``act`` is given; by default the environment's.

    Raises:
        ValueError: the actions or the observations are not those that the model was trained on.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("CnnPolicy", SB3VecEnv(imagined_worlds)).learn(10_000)
        >>> policy = SB3Policy(make_env("sfvgen/TabletopReturn-v0"), model)
    """

    follows_instructions = False

    def __init__(
        self,
        env: gym.Env[Any, Any],
        model: SB3Model,
        deterministic: bool = True,
        observation_space: gym.Space[Any] | None = None,
    ) -> None:
        space = env.action_space
        if not isinstance(space, gym.spaces.Box) or not _same_box(space, model.action_space):
            raise ValueError(
                f"The SB3 model was trained on the actions {model.action_space}, but the "
                f"environment takes {space}."
            )
        shown = env.observation_space if observation_space is None else observation_space
        if not _fits(shown, model.observation_space):
            raise ValueError(
                f"The SB3 model was trained on the observations {model.observation_space}, but the "
                f"environment shows {shown}; wrap it as for training, or use EncodedPolicy (of "
                "sfvgen_planner.imagination.sb3) for a model that was trained on an EncodedVecEnv."
            )
        self._space = space
        self._model = model
        self._deterministic = deterministic
        self._state: Any = None
        self._begins = True

    def reset(self, seed: int | None = None) -> None:
        self._state, self._begins = None, True
        if seed is not None and not self._deterministic:
            self._model.set_random_seed(seed)

    def act(self, observation: Any, instruction: str = "") -> np.ndarray:
        """Return the next action; the instruction is not read.

        Raises:
            ValueError: the observation is not of the kind that the model was trained on.
        """
        wanted = self._model.observation_space
        if isinstance(observation, Mapping) and not isinstance(wanted, gym.spaces.Dict):
            if "image" not in observation:
                raise ValueError(
                    f"The SB3 model was trained on {wanted}, but the observation is a dict without "
                    f"'image'; it has {', '.join(map(str, observation))}."
                )
            observation = observation["image"]
        actions, self._state = self._model.predict(
            observation,
            state=self._state,
            episode_start=np.array([self._begins]),
            deterministic=self._deterministic,
        )
        self._begins = False
        # Imagined worlds take float32, whatever the environment takes.
        return np.clip(actions.astype(self._space.dtype), self._space.low, self._space.high)


def _fits(shown: gym.Space[Any], wanted: gym.Space[Any]) -> bool:
    """Whether a model can look at what is shown; SB3 turns pictures to (C, H, W) by itself."""
    if isinstance(wanted, gym.spaces.Dict):
        return (
            isinstance(shown, gym.spaces.Dict)
            and shown.keys() == wanted.keys()
            and all(_fits(shown[name], wanted[name]) for name in wanted)
        )
    if isinstance(shown, gym.spaces.Dict) and "image" in shown.spaces:
        shown = shown["image"]
    if not isinstance(shown, gym.spaces.Box) or not isinstance(wanted, gym.spaces.Box):
        return shown == wanted
    # Of pictures SB3 takes the range from their type; other numbers may be normalised in any way.
    is_picture = np.issubdtype(wanted.dtype, np.integer)
    return wanted.shape in (shown.shape, shown.shape[-1:] + shown.shape[:-1]) and (
        shown.dtype == wanted.dtype if is_picture else not np.issubdtype(shown.dtype, np.integer)
    )


def _same_box(one: gym.spaces.Box, other: gym.Space[Any]) -> bool:
    """Whether actions have the same shape and bounds, in single precision."""
    return (
        isinstance(other, gym.spaces.Box)
        and one.shape == other.shape
        and np.array_equal(one.low.astype(np.float32), other.low.astype(np.float32))
        and np.array_equal(one.high.astype(np.float32), other.high.astype(np.float32))
    )
