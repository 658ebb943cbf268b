"""Stable-Baselines3's ``.zip`` files, read without their pickles."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any
from zipfile import BadZipFile, ZipFile

import gymnasium as gym
import torch

from sfvgen_planner.errors import SfvgenError, require

try:
    from stable_baselines3 import PPO, SAC
    from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
    from stable_baselines3.common.save_util import data_to_json
    from stable_baselines3.common.vec_env import VecTransposeImage
except ImportError as error:
    raise SfvgenError(
        "Stable-Baselines3 is not installed: pip install 'sfvgen-planner[sb3]'"
    ) from error

_TOLD_OF_SPACES = (":type:", "_shape", "dtype", "low", "high", "spaces")
"""What a file says in plain text of a space, beside the pickle of it."""


def load_sb3(
    path: Path,
    observation_spaces: Sequence[gym.Space[Any]],
    action_space: gym.Space[Any],
    device: str = "cpu",
) -> PPO | SAC:
    """Load a PPO or SAC model to act with, and not to train on.

    Stable-Baselines3's own ``load`` unpickles what is not JSON, which runs whatever code the file
    holds. Here nothing of that is opened: the spaces are the given ones, compared with the file's
    plain text, the settings are its plain JSON, and the weights are read by PyTorch's
    ``weights_only`` reader, which takes tensors and runs no code. So only models of
    Stable-Baselines3's own networks can be loaded: its policy for pictures, vectors or dicts, with
    ``policy_kwargs`` of numbers, words and lists. Statistics of ``VecNormalize`` are in no such
    file.

    Args:
        path: of a file that the model's ``save`` wrote.
        observation_spaces: that it may have been trained on, pictures as ``(H, W, 3)`` or
            ``(3, H, W)`` uint8; it gets the first one that fits.
        action_space: that it must have been trained on.
        device: of its networks.

    Raises:
        SfvgenError: the file is no such model, it was trained on other observations or actions, or
            Stable-Baselines3 is missing (on import).
    """
    settings, weights = _read(path, device)
    algorithm: Any = SAC if "target_entropy" in settings else PPO
    require(
        algorithm is SAC or "clip_range" in settings,
        f"{path} is a model of neither PPO nor SAC, the only ones that can be loaded",
    )
    spaces = [_channels_first(space) for space in observation_spaces]
    told = settings["observation_space"]
    fitting = [space for space in spaces if _is_told(space, told)]
    require(
        bool(fitting),
        f"{path} was trained on other observations ({_summary(told)}) than there are here: "
        f"{' or '.join(map(str, spaces))}",
    )
    told = settings["action_space"]
    require(
        _is_told(action_space, told),
        f"{path} was trained on other actions ({_summary(told)}) than there are here: "
        f"{action_space}",
    )
    name = _policy_name(fitting[0])
    policy_class = algorithm.policy_aliases[name]
    agent: PPO | SAC = algorithm(policy_class, None, device=device, _init_setup_model=False)
    agent.observation_space, agent.action_space = fitting[0], action_space
    kwargs = {"use_sde": settings.get("use_sde", False), **settings["policy_kwargs"]}
    try:
        policy: Any = policy_class(fitting[0], action_space, lambda _: 0.0, **kwargs)
        policy.load_state_dict(weights)
    except (AssertionError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise SfvgenError(
            f"{path} holds no {algorithm.__name__} model with Stable-Baselines3's own {name} and "
            "plain policy_kwargs; give another one in memory, as a Rung"
        ) from error
    agent.policy = policy.to(agent.device)
    return agent


def _read(path: Path, device: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The settings, where what is pickled stays as text, and the networks' weights."""
    try:
        with ZipFile(path) as archive:
            settings = json.loads(archive.read("data"))
            weights = _weights(archive.read("policy.pth"), device)
        for name in ("observation_space", "action_space", "policy_kwargs"):
            if not isinstance(settings[name], dict):
                raise ValueError(f"{name} is {settings[name]}")
    except (
        OSError,
        BadZipFile,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        raise SfvgenError(
            f"{path} is no file that a model of Stable-Baselines3 was saved to: {error}"
        ) from error
    return settings, weights


def _weights(pickled: bytes, device: str) -> dict[str, torch.Tensor]:
    try:
        weights: dict[str, torch.Tensor] = torch.load(
            io.BytesIO(pickled), map_location=device, weights_only=True
        )
    except UnpicklingError as error:
        # PyTorch's own words tell how to open it all the same.
        raise ValueError("its policy.pth holds more than tensors, which is not opened") from error
    return weights


def _channels_first(space: gym.Space[Any]) -> gym.Space[Any]:
    """The space as Stable-Baselines3's algorithms see it."""
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict({name: _channels_first(part) for name, part in space.items()})
    if isinstance(space, gym.spaces.Box) and is_image_space(space):
        is_done = is_image_space_channels_first(space)
        return space if is_done else VecTransposeImage.transpose_space(space)
    return space


def _is_told(space: gym.Space[Any], told: dict[str, Any]) -> bool:
    """Whether it is this space that a file tells of."""
    own = json.loads(data_to_json({"space": space}))["space"]
    return all(own.get(name) == told.get(name) for name in _TOLD_OF_SPACES)


def _summary(told: dict[str, Any]) -> str:
    """A told space in a few words."""
    kind = str(told.get(":type:")).rpartition(".")[2].rstrip("'>")
    # The bounds of pictures are long, and NumPy leaves most of them out.
    details = [str(told[name]) for name in _TOLD_OF_SPACES[1:] if told.get(name)]
    details = [shorten(detail, 200) for detail in details if "..." not in detail]
    return f"{kind} {' '.join(details)}"


def _policy_name(space: gym.Space[Any]) -> str:
    if isinstance(space, gym.spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"
