"""Play one episode and record it."""

import math
from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from sfvgen_policies import Policy

from sfvgen_planner.data.actions import action_array
from sfvgen_planner.data.camera import camera_frame, proprioception
from sfvgen_planner.data.environment import Environment, action_box
from sfvgen_planner.data.episode import Episode, EpisodeSource
from sfvgen_planner.data.rewards import reward_number
from sfvgen_planner.errors import SfvgenError, require

# A final info may hold whole arrays of a simulator's state: what is longer is left out.
MAX_INFO_VALUES = 256


def record_episode(
    env: Environment,
    policy: Policy,
    seed: int,
    source: EpisodeSource,
    image_size: int | None = None,
) -> Episode:
    """Play an episode until the environment ends it.

    The environment's `info["instruction"]`, where there is one, tells the policy what to do; it
    is stored as "" where the policy's `follows_instructions` is false. Its `info["success"]`, or
    else `info["is_success"]`, after each step becomes the episode's `successes`.

    Args:
        env: From `make_env`.
        policy: Chooses the actions, in the environment's units.
        seed: Seeds the environment, its action space and the policy.
        source: Stored with the episode.
        image_size: Height and width of the frames; None keeps the camera's.

    Raises:
        SfvgenError: The policy gave a wrong action, or the environment no picture, pictures of
            several sizes, or a reward that is no number.
    """
    recorder = EpisodeRecorder(env, seed, source, image_size)
    policy.reset(seed)
    while not recorder.is_over:
        action = recorder.checked(policy.act(recorder.observation, recorder.instruction))
        recorder.add(action, env.step(recorder.exact(action)))
    return recorder.episode(policy)


class EpisodeRecorder:
    """Begins an episode and keeps what comes of it; whoever plays it steps the environment.

    Args:
        env: See `record_episode`; reset here.
        seed: Likewise.
        source: Likewise.
        image_size: Likewise.

    Attributes:
        observation: The environment's latest.
        instruction: What it asks for now, "" for nothing.
        is_over: Whether it has ended the episode.
    """

    def __init__(
        self, env: Environment, seed: int, source: EpisodeSource, image_size: int | None = None
    ) -> None:
        self._env, self._seed, self._source, self._image_size = env, seed, source, image_size
        self._space = action_box(env)
        self._space.seed(seed)
        self._frames: list[NDArray[np.uint8]] = []
        self._sensed: list[NDArray[np.float32] | None] = []
        self._actions: list[NDArray[np.float32]] = []
        self._rewards: list[float] = []
        self._successes: list[bool | None] = []
        self._instructions: list[str] = []
        self._terminated = self._truncated = False
        self._observe(*env.reset(seed=seed))

    @property
    def is_over(self) -> bool:
        return self._terminated or self._truncated

    def checked(self, action: object) -> NDArray[np.float32]:
        """A policy's action as `(A,)` float32; see `checked_action`."""
        return checked_action(action, self._space, len(self._actions))

    def exact(self, action: NDArray[np.float32]) -> NDArray[Any]:
        """A checked action as the environment takes it."""
        # Rounding to float32 may lead a hair out of a float64 space.
        return np.clip(action.astype(self._space.dtype), self._space.low, self._space.high)

    def add(
        self,
        action: NDArray[np.float32],
        result: tuple[Any, SupportsFloat, bool, bool, dict[str, Any]],
    ) -> None:
        """Keep a checked action and what the environment's `step` returned for it."""
        observation, reward, terminated, truncated, info = result
        self._actions.append(action)
        self._rewards.append(reward_number(reward))
        self._successes.append(_success(info))
        self._instructions.append(self.instruction)
        self._terminated, self._truncated = bool(terminated), bool(truncated)
        self._observe(observation, info)

    def episode(self, policy: Policy) -> Episode:
        """The episode that is over, played by `policy`."""
        # What is asked of a policy that does not listen would only teach a model wrong words.
        follows = getattr(policy, "follows_instructions", True)
        sensed, successes = self._sensed, self._successes
        return Episode(
            frames=np.stack(self._frames),
            actions=np.stack(self._actions),
            instructions=self._instructions if follows else [""] * len(self._instructions),
            rewards=np.array(self._rewards, np.float32),
            terminated=self._terminated,
            truncated=self._truncated,
            seed=self._seed,
            proprio=None if sensed[0] is None else np.stack([s for s in sensed if s is not None]),
            successes=None if None in successes else np.array(successes, np.bool_),
            info=json_values(self._info),
            source=self._source,
        )

    def _observe(self, observation: Any, info: dict[str, Any]) -> None:
        self.observation, self._info = observation, info
        self.instruction = told_instruction(info)
        # Environments may reuse their observation's memory: frames are copied.
        frame = camera_frame(self._env, observation, self._image_size).copy()
        first = self._frames[0] if self._frames else frame
        require(
            frame.shape == first.shape,
            f"the camera's picture after step {len(self._actions)} has shape {frame.shape}, but "
            f"the first had {first.shape}; give an image size, which all are brought to",
        )
        self._frames.append(frame)
        self._sensed.append(proprioception(observation))


def told_instruction(info: Mapping[str, Any]) -> str:
    """What an environment tells the robot to do; empty where it tells nothing."""
    return str(info.get("instruction") or "")


def _success(info: Mapping[str, Any]) -> bool | None:
    """Whether the task is achieved; None where the environment does not say."""
    told = info.get("success", info.get("is_success"))
    return None if told is None else bool(told)


def checked_action(action: object, space: gym.spaces.Box, step: int) -> NDArray[np.float32]:
    """Return a policy's action as `(A,)` float32, or raise an SfvgenError if it cannot be done."""
    wanted = f"the policy's action at step {step} must be {space.shape} finite numbers"
    values = action_array(action, wanted)
    if values.shape != space.shape:
        raise SfvgenError(
            f"the policy's action at step {step} has shape {values.shape}, but the environment "
            f"takes {space.shape}"
        )
    if not np.isfinite(values).all():
        raise SfvgenError(
            f"the policy's action at step {step} is {values.tolist()}, but every component must "
            "be a finite number"
        )
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    if (values < low).any() or (values > high).any():
        raise SfvgenError(
            f"the policy's action at step {step} is {values.tolist()}, but it must lie between "
            f"{low.tolist()} and {high.tolist()}"
        )
    return values


def json_values(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of an `info` that JSON can hold; long arrays and objects are left out."""
    kept = {key: _json_value(value) for key, value in info.items() if isinstance(key, str)}
    return {key: value for key, value in kept.items() if value is not _UNFIT}


_UNFIT = object()


def _json_value(value: object) -> object:
    if isinstance(value, np.ndarray) and value.size <= MAX_INFO_VALUES:
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return json_values(value)
    if isinstance(value, list | tuple) and len(value) <= MAX_INFO_VALUES:
        items = [_json_value(item) for item in value]
        return _UNFIT if any(item is _UNFIT for item in items) else items
    return _UNFIT
