"""One episode: what a camera saw, what was done, what was asked for."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfvgen_planner.errors import SfvgenError

FrameArray = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class EpisodeSource:
    """Where an episode came from; together with its seed this makes it again.

    Attributes:
        policy: Name of the policy, or `module:Class`; empty when unknown.
        policy_kwargs: Arguments of the policy (JSON values).
        env_kwargs: Arguments of `gymnasium.make` (JSON values).
    """

    policy: str = ""
    policy_kwargs: dict[str, Any] = field(default_factory=dict)
    env_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Episode:
    """An episode of T video steps. Action k leads from frame k to frame k + 1.

    Attributes:
        frames: `(T + 1, H, W, 3)` uint8, RGB.
        actions: `(T, A)` float32, in the environment's own units.
        instructions: T strings, the one in force when each action was chosen; may be empty.
        rewards: `(T,)` float32, summed over the environment steps of a video step.
        terminated: Whether the environment ended the episode.
        truncated: Whether a limit from outside ended it.
        seed: Seed of `env.reset` and `policy.reset`.
        proprio: `(T + 1, P)` float32, the robot's own sensors, or None.
        successes: `(T,)` bool, or None where the environment does not tell: whether frame k + 1
            shows instruction k achieved.
        info: The `info` of the last step (JSON values).
        source: What made the episode.

    Raises:
        SfvgenError: Shapes, types or lengths do not fit each other.
    """

    frames: FrameArray
    actions: FloatArray
    instructions: list[str]
    rewards: FloatArray
    terminated: bool
    truncated: bool
    seed: int
    proprio: FloatArray | None = None
    successes: BoolArray | None = None
    info: dict[str, Any] = field(default_factory=dict)
    source: EpisodeSource = field(default_factory=EpisodeSource)

    def __post_init__(self) -> None:
        steps = len(self.actions)
        frames = self.frames
        if steps == 0:
            raise SfvgenError("an episode needs at least one action, but this one has none")
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise SfvgenError(
                "an episode's frames must be uint8 of shape (T + 1, H, W, 3), "
                f"but they are {frames.dtype} of shape {frames.shape}"
            )
        if self.actions.ndim != 2 or self.actions.dtype != np.float32:
            raise SfvgenError(
                "an episode's actions must be float32 of shape (T, A), "
                f"but they are {self.actions.dtype} of shape {self.actions.shape}"
            )
        lengths = {
            "frames": (len(frames), steps + 1),
            "instructions": (len(self.instructions), steps),
            "rewards": (len(self.rewards), steps),
        }
        if self.proprio is not None:
            lengths["proprio"] = (len(self.proprio), steps + 1)
        if self.successes is not None:
            if self.successes.dtype != np.bool_:
                raise SfvgenError(
                    f"an episode's successes must be bool, but they are {self.successes.dtype}"
                )
            lengths["successes"] = (len(self.successes), steps)
        for name, (found, expected) in lengths.items():
            if found != expected:
                raise SfvgenError(
                    f"an episode of {steps} actions needs {expected} {name}, but has {found}"
                )

    def __len__(self) -> int:
        """Return T, the number of video steps."""
        return len(self.actions)


@dataclass(frozen=True, eq=False)
class Window:
    """n consecutive frames of one episode and what led from each to the next.

    Attributes:
        frames: `(n, H, W, 3)` uint8.
        actions: `(n - 1, A)` float32; action k leads from frame k to frame k + 1.
        instructions: n - 1 strings, one per action.
    """

    frames: FrameArray
    actions: FloatArray
    instructions: list[str]
