"""Environments of Gymnasium's MuJoCo renderer that can take turns in one process."""

from typing import Any

import gymnasium as gym
from gymnasium.core import ActType, ObsType


class OwnGLContext(
    gym.Wrapper[ObsType, ActType, ObsType, ActType], gym.utils.RecordConstructorArgs
):
    """Draw, and free what was drawn with, in the environment's own GL context.

    Gymnasium's MuJoCo renderer does both in whichever context is current. Where several
    environments live in one process that is another one's, and once that is closed, pictures are
    black.
    """

    def __init__(self, env: gym.Env[ObsType, ActType]) -> None:
        """Wrap an environment for which `draws_with_gymnasium` holds."""
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def render(self) -> Any:
        """Draw a picture as the environment does."""
        for viewer in self._viewers():
            viewer.make_context_current()
        return self.env.render()

    def close(self) -> None:
        """Close the environment and free its buffers."""
        for viewer in self._viewers():
            viewer.make_context_current()
            viewer.con.free()
        self.env.close()

    def _viewers(self) -> list[Any]:
        renderer: Any = self.unwrapped.mujoco_renderer  # type: ignore[attr-defined]
        return list(renderer._viewers.values())


def draws_with_gymnasium(env: gym.Env[Any, Any]) -> bool:
    """Whether an environment draws with Gymnasium's MuJoCo renderer."""
    return hasattr(getattr(env.unwrapped, "mujoco_renderer", None), "_viewers")
