"""Play one episode and record it."""

import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from sfvgen_policies import Policy

from sfvgen_planner.data.camera import camera_frame, proprioception
from sfvgen_planner.data.environment import Environment, action_box
from sfvgen_planner.data.episode import Episode, EpisodeSource
from sfvgen_planner.errors import SfvgenError

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
        SfvgenError: The policy gave a wrong action, or the environment shows no picture.
    """
    space = action_box(env)
    space.seed(seed)
    observation, info = env.reset(seed=seed)
    policy.reset(seed)
    # Environments may reuse their observation's memory: frames are copied.
    frames = [camera_frame(env, observation, image_size).copy()]
    sensed = [proprioception(observation)]
    actions: list[NDArray[np.float32]] = []
    rewards: list[float] = []
    successes: list[bool | None] = []
    instructions: list[str] = []
    # What is asked of a policy that does not listen would only teach a model wrong words.
    follows = getattr(policy, "follows_instructions", True)
    terminated = truncated = False
    while not (terminated or truncated):
        instruction = str(info.get("instruction", ""))
        action = checked_action(policy.act(observation, instruction), space, len(actions))
        # Rounding to float32 may lead a hair out of a float64 space.
        exact = np.clip(action.astype(space.dtype), space.low, space.high)
        observation, reward, terminated, truncated, info = env.step(exact)
        actions.append(action)
        rewards.append(float(reward))
        successes.append(_success(info))
        instructions.append(instruction if follows else "")
        frames.append(camera_frame(env, observation, image_size).copy())
        sensed.append(proprioception(observation))
    return Episode(
        frames=np.stack(frames),
        actions=np.stack(actions),
        instructions=instructions,
        rewards=np.array(rewards, np.float32),
        terminated=bool(terminated),
        truncated=bool(truncated),
        seed=seed,
        proprio=None if sensed[0] is None else np.stack([s for s in sensed if s is not None]),
        successes=None if None in successes else np.array(successes, np.bool_),
        info=json_values(info),
        source=source,
    )


def _success(info: Mapping[str, Any]) -> bool | None:
    """Whether the task is achieved; None where the environment does not say."""
    told = info.get("success", info.get("is_success"))
    return None if told is None else bool(told)


def checked_action(action: object, space: gym.spaces.Box, step: int) -> NDArray[np.float32]:
    """Return a policy's action as `(A,)` float32, or raise an SfvgenError if it cannot be done."""
    values = np.asarray(action, dtype=np.float32)
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
