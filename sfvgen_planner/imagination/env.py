"""One imagined world, as a Gymnasium environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from sfvgen_planner.data.actions import check_action
from sfvgen_planner.errors import require
from sfvgen_planner.imagination.infos import env_info
from sfvgen_planner.imagination.starts import Starts
from sfvgen_planner.imagination.vector_env import WorldModelVectorEnv
from sfvgen_planner.imagination.window import Window

if TYPE_CHECKING:
    from sfvgen_planner.world_model import VideoWorldModel


class WorldModelEnv(gym.Env[np.ndarray, np.ndarray]):
    """An environment whose step is imagined: :class:`WorldModelVectorEnv` of one world.

    Args:
        world_model: the model; it must take actions.
        starts: where episodes begin, see :mod:`sfvgen_planner.imagination.starts`.
        render_mode: ``"rgb_array"``; ``"human"``, which shows every frame in a window and needs
            pygame (``pip install 'sfvgen-planner[window]'``); or None.
        **kwargs: further arguments of :class:`WorldModelVectorEnv`, from ``instruction`` to
            ``memory``.

    Attributes:
        frame_skip: steps of the real environment that one imagined step stands for.

    Raises:
        SfvgenError: where an argument makes no sense, the model takes no actions, or no window can
            be opened.
        gymnasium.error.DependencyNotInstalled: where a window is asked for and pygame is missing.

    Example:
        >>> from sfvgen_planner.data.environment import make_env
        >>> from sfvgen_planner.world_model import load_world_model
        >>> starts = EnvStarts(make_env("sfvgen/TabletopReturn-v0"))
        >>> env = WorldModelEnv(load_world_model(), starts, horizon=16)
        >>> observation, info = env.reset(seed=0)
        >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        **WorldModelVectorEnv.metadata,
        "render_modes": ["human", "rgb_array"],
    }

    def __init__(
        self,
        world_model: VideoWorldModel,
        starts: Starts,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        modes = self.metadata["render_modes"]
        require(
            render_mode in (None, *modes), f"render_mode must be one of {modes}, got {render_mode}"
        )
        self.render_mode = render_mode
        self._world = WorldModelVectorEnv(
            world_model,
            starts,
            num_envs=1,
            autoreset_mode=AutoresetMode.DISABLED,
            render_mode="rgb_array",
            **kwargs,
        )
        self.frame_skip: int = world_model.config.frame_skip
        self.observation_space = self._world.single_observation_space
        self.action_space = self._world.single_action_space
        fps = self._world.metadata["render_fps"]
        self.metadata = {**self.metadata, "render_fps": fps}
        self._window = Window("Imagined world", fps) if render_mode == "human" else None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a new episode.

        Args:
            seed: makes this and the following episodes repeatable.
            options: none are known.

        Returns:
            The start's last frame ``(H, W, 3)`` uint8, and infos.

        Raises:
            SfvgenError: where an option is given, or the start's frames do not fit the model.
        """
        require(not options, f"imagined worlds know no options of reset, got {options}")
        super().reset(seed=None if seed is None else int(seed))
        self._world.np_random = (self.np_random,)
        observations, infos = self._world.reset()
        self._show()
        return observations[0], env_info(infos, 0)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Imagine the next frame.

        Args:
            action: ``(A,)`` in the environment's units.

        Raises:
            SfvgenError: before ``reset`` or after the episode's end; or where the action has the
                wrong shape, is not finite or leaves the bounds.
        """
        check_action(action, self.action_space)
        observations, rewards, terminations, truncations, infos = self._world.step(
            np.asarray(action)[None]
        )
        self._show()
        return (
            observations[0],
            float(rewards[0]),
            bool(terminations[0]),
            bool(truncations[0]),
            env_info(infos, 0),
        )

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The latest frame ``(H, W, 3)`` uint8 in the mode ``"rgb_array"``, else None."""
        frames = self._world.render()
        return frames[0] if frames is not None and self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def _show(self) -> None:
        frames = self._world.render()
        if self._window is not None and frames is not None:
            self._window.show(frames[0])
