"""OGBench's own oracle for its cubes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from sfvgen_policies.noisy_expert import NoisyExpert


class OGBenchCubeExpert(NoisyExpert):
    """Brings the cube to its goal with OGBench's Markov oracle, which looks into the simulator.

    Args:
        env: a cube environment of OGBench with a single cube, in the mode ``"task"``.
        noise: see :class:`~sfvgen_policies.noisy_expert.NoisyExpert`.

    Raises:
        ValueError: for another environment, or a negative noise.
    """

    def __init__(self, env: gym.Env[Any, Any], noise: float = 0.0) -> None:
        cubes: Any = env.unwrapped
        known = type(cubes).__mro__
        if not any(base.__module__ == "ogbench.manipspace.envs.cube_env" for base in known):
            raise ValueError(
                f"OGBenchCubeExpert only knows the cubes of OGBench, not {cubes}; use the policy "
                "'random' or one of your own."
            )
        # OGBench is there, for this is one of its environments.
        from ogbench.manipspace.lie import SO3
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle

        self._cubes = cubes
        self._rotation = SO3
        self._oracle = CubeMarkovOracle(env=cubes)
        super().__init__(4, noise)
        self._rng = np.random.default_rng()
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        super().reset(seed)
        self._oracle.reset(None, None)
        # The oracle draws where it goes in the end outside of any seed.
        self._oracle._final_pos = self._rng.uniform(*self._cubes._arm_sampling_bounds)
        self._oracle._final_yaw = self._rng.uniform(-np.pi, np.pi)

    def act(self, observation: Any = None, instruction: str = "") -> np.ndarray:
        """Return the next action, float32 (5,); both arguments are ignored."""
        info = self._cubes.compute_ob_info()
        target = self._cubes._cube_target_mocap_ids[0]
        data = self._cubes.data
        yaw = self._rotation(wxyz=data.mocap_quat[target]).compute_yaw_radians()
        info["privileged/target_block"] = 0
        info["privileged/target_block_pos"] = data.mocap_pos[target]
        info["privileged/target_block_yaw"] = np.array([yaw])
        return self._disturbed(self._oracle.select_action(observation, info))
