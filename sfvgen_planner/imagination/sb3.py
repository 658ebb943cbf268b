"""Vector environments for Stable-Baselines3, which has a vector format of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from sfvgen_policies.sb3 import SB3Model, SB3Policy

from sfvgen_planner.data.camera import camera_frame
from sfvgen_planner.data.rollout import told_instruction
from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.imagination.encoded_observation import ObservationEncoder
from sfvgen_planner.imagination.infos import env_info

try:
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
except ImportError as error:
    raise SfvgenError(
        "Stable-Baselines3 is not installed: pip install 'sfvgen-planner[sb3]'"
    ) from error


class SB3VecEnv(VecEnv):
    """Train Stable-Baselines3 in a Gymnasium vector environment, such as imagined worlds.

    Args:
        envs: a vector environment that resets in the same step, as SB3 does.

    Raises:
        SfvgenError: where it has another autoreset mode, or Stable-Baselines3 is missing (on
            import).

    Example:
        >>> from gymnasium.vector import AutoresetMode
        >>> from stable_baselines3 import PPO
        >>> envs = WorldModelVectorEnv(model, starts, 16, autoreset_mode=AutoresetMode.SAME_STEP)
        >>> PPO("CnnPolicy", SB3VecEnv(envs)).learn(10_000)
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        mode = envs.metadata.get("autoreset_mode")
        require(
            mode is AutoresetMode.SAME_STEP,
            f"SB3 resets in the same step: use autoreset_mode=AutoresetMode.SAME_STEP, not {mode}",
        )
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Any:
        """Begin all episodes anew, with the seeds given to ``seed``.

        Raises:
            SfvgenError: where ``set_options`` was given different options for each environment,
                which reset together.
        """
        options = self._options[0]
        require(
            all(own == options for own in self._options),
            f"the environments reset together, with the same options; got {self._options}",
        )
        observations, infos = self.envs.reset(
            seed=self._seeds,  # type: ignore[arg-type]
            options=options or None,
        )
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [env_info(infos, row) for row in range(self.num_envs)]
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions ``(N, A)`` of the next step."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Make the step: observations, rewards, whether episodes ended, and infos."""
        observations, rewards, terminations, truncations, infos = self.envs.step(self._actions)
        dones = terminations | truncations
        one_each = [env_info(infos, row) for row in range(self.num_envs)]
        for row in np.flatnonzero(dones).tolist():
            begun = one_each[row]
            one_each[row] = begun.pop("final_info") | {
                "terminal_observation": begun.pop("final_obs")
            }
            # Of the episode that ended: Gymnasium's RecordEpisodeStatistics.
            if "episode" in begun:
                one_each[row]["episode"] = begun.pop("episode")
            self.reset_infos[row] = begun
        for row, info in enumerate(one_each):
            info["TimeLimit.truncated"] = bool(truncations[row] and not terminations[row])
        return observations, rewards.astype(np.float32), dones, one_each

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The latest frame of each environment."""
        images: Any = self.envs.render()
        return images or [None] * self.num_envs

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The vector environment's attribute, once for each index; spaces are those of one."""
        if attr_name in ("observation_space", "action_space"):
            attr_name = f"single_{attr_name}"
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: the environments are one object."""
        raise SfvgenError(f"set {attr_name} on the vector environment itself, .envs")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refused: the environments are one object."""
        raise SfvgenError(f"call {method_name} on the vector environment itself, .envs")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        """False: there are no wrappers around single environments."""
        return [False for _ in self._get_indices(indices)]


class EncodedVecEnv(VecEnvWrapper):
    """Show a policy encoded pictures and instructions instead of the pictures alone.

    Args:
        envs: imagined worlds or simulators; the observation is a picture ``(H, W, 3)`` uint8 of the
            world model's size, and ``info["instruction"]`` tells the instruction, if there is one.
        encoder: the same for all worlds that a policy shall act in.

    Raises:
        SfvgenError: the observations are no such pictures.

    Example:
        >>> envs = EncodedVecEnv(SB3VecEnv(worlds), ObservationEncoder(world_model))
        >>> SAC("MultiInputPolicy", envs).learn(10_000)
    """

    def __init__(self, envs: VecEnv, encoder: ObservationEncoder) -> None:
        wanted, found = (encoder.image_size, encoder.image_size, 3), envs.observation_space
        require(
            found.shape == wanted and found.dtype == np.uint8,
            f"observations must be pictures of the shape {wanted}, uint8, got {found}",
        )
        super().__init__(envs, observation_space=encoder.space)
        self._encoder = encoder

    def reset(self) -> dict[str, np.ndarray]:
        """Begin all episodes anew."""
        frames: Any = self.venv.reset()
        self.reset_infos = self.venv.unwrapped.reset_infos
        return self._encoder(frames, [told_instruction(info) for info in self.reset_infos])

    def step_wait(
        self,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Make the step: observations, rewards, whether episodes ended, and infos."""
        frames: Any
        frames, rewards, dones, infos = self.venv.step_wait()
        self.reset_infos = self.venv.unwrapped.reset_infos
        # Where an episode ended there are two pictures: its last, and the next one's first.
        ended = np.flatnonzero(dones).tolist()
        last = [infos[row]["terminal_observation"] for row in ended]
        told = [self.reset_infos[row] if dones[row] else infos[row] for row in range(len(dones))]
        told += [infos[row] for row in ended]
        encoded = self._encoder(
            np.concatenate([frames, *(frame[None] for frame in last)]),
            [told_instruction(info) for info in told],
        )
        for row, place in zip(ended, range(len(dones), len(told)), strict=True):
            infos[row]["terminal_observation"] = {
                name: values[place] for name, values in encoded.items()
            }
        observations = {name: values[: len(dones)] for name, values in encoded.items()}
        return observations, rewards, dones, infos


class EncodedPolicy:
    """Act as a Stable-Baselines3 model does that was trained on an :class:`EncodedVecEnv`.

    Args:
        env: environment that it will act in, of any observations and with a camera.
        model: a trained model, in memory.
        encoder: as in training.
        deterministic: as of :class:`~sfvgen_policies.sb3.SB3Policy`.

    Raises:
        SfvgenError: the model was not trained on what the encoder shows.
        ValueError: the environment's actions are not those that the model was trained on.

    Example:
        >>> encoder = ObservationEncoder(world_model)
        >>> model = SAC("MultiInputPolicy", EncodedVecEnv(SB3VecEnv(worlds), encoder)).learn(10_000)
        >>> policy = EncodedPolicy(make_env("sfvgen/TabletopReturn-v0"), model, encoder)
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        model: SB3Model,
        encoder: ObservationEncoder,
        deterministic: bool = True,
    ) -> None:
        require(
            model.observation_space == encoder.space,
            f"the SB3 model was trained on {model.observation_space}, but this encoder shows "
            f"{encoder.space}; use the encoder of its training, or SB3Policy for a model that was "
            "trained on an environment's own observations",
        )
        self._env = env
        self._encoder = encoder
        self._policy = SB3Policy(env, model, deterministic, encoder.space)

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode; see :class:`~sfvgen_policies.Policy`."""
        self._policy.reset(seed)

    def act(self, observation: Any, instruction: str = "") -> np.ndarray:
        """Return the next action ``(A,)`` for what the camera shows and the robot is told."""
        frame = camera_frame(self._env, observation, self._encoder.image_size)
        encoded = self._encoder(frame[None], [instruction])
        return self._policy.act({name: values[0] for name, values in encoded.items()})
