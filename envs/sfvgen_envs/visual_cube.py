"""OGBench's visual cube, rendered plainly and repeatable from its seed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from ogbench.manipspace.envs.cube_env import CubeEnv

from sfvgen_envs.robots import render_plainly


class VisualCubeEnv(CubeEnv):
    """A ``CubeEnv`` of pictures; see :func:`sfvgen_envs.robots.make_visual_cube`.

    OGBench draws the task, and two random actions at every reset, outside of the seed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        render_mode: str | None = None,
        image_size: int = 64,
        task_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._actions = super().action_space
        self._task_id = task_id
        picture = {"ob_type": "pixels", "visualize_info": False}
        super().__init__(
            **{"env_type": "single", **picture, **kwargs}, width=image_size, height=image_size
        )
        self.render_mode = render_mode
        if task_id is not None and not 1 <= task_id <= self.num_tasks:
            raise ValueError(f"task_id must be from 1 to {self.num_tasks}, got {task_id}.")

    @property
    def action_space(self) -> gym.spaces.Box:
        return self._actions

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._actions.seed(seed)
            self._np_random, self._np_random_seed = gym.utils.seeding.np_random(seed)
        task_id = self._task_id
        if task_id is None:
            task_id = int(self.np_random.integers(1, self.num_tasks + 1))
        return super().reset(seed=seed, options={"task_id": task_id, **(options or {})})

    def post_compilation(self) -> None:
        render_plainly(self._model)
        super().post_compilation()

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
