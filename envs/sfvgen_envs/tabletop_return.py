"""``sfvgen/TabletopReturn-v0``: move coloured cubes about, then bring one back."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from sfvgen_envs.rendering import RENDER_QUALITIES, Camera, RenderQuality, has_display
from sfvgen_envs.tabletop_instructions import (
    LEAST_MOVES,
    MOST_MOVES,
    NUM_PADS,
    RECALLS,
    EpisodePlan,
    Instruction,
    Recall,
    draw_episode,
    most_moves_before,
)
from sfvgen_envs.tabletop_scene import (
    CUBE_COLOURS,
    CUBE_HALF_EDGE,
    FINGER_STROKE,
    PAD_COLOURS,
    build_model,
)

import mujoco  # isort: skip (the GL backend is chosen above)

CONTROL_TIMESTEP = 0.2
"""Simulated time of one environment step [s]."""
MAX_SPEED = 0.5
"""Speed of the gripper at action 1 [m/s], per axis."""
MAX_FINGER_SPEED = 0.2
"""Speed of each finger at action 1 [m/s]."""
SUCCESS_DISTANCE = 0.02
"""A cube has reached its place within this distance [m]."""
CLEAR_HEIGHT = 0.09
"""The gripper is raised when its grasp point is at least this high [m]."""
PROGRESS_REWARD = 10.0
"""Reward per metre that the asked cube comes nearer to its place."""
SUCCESS_REWARD = 1.0
"""Reward when an instruction is achieved."""

_SERVOS = ("x", "y", "z", "left_finger", "right_finger")
_REST_SPEED = 0.02
_REST_HEIGHT = 0.004
_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
_OBSERVATION_LOW = np.array([-0.25, -0.20, 0.0, 0.0], np.float32)
_OBSERVATION_HIGH = np.array([0.25, 0.20, 0.20, 1.0], np.float32)


@dataclass
class _Episode:
    """What the task remembers beside the simulator."""

    plan: EpisodePlan
    index: int
    steps_left: int
    terminated: bool
    moved_from: dict[str, np.ndarray]
    results: list[dict[str, Any]]


@dataclass(frozen=True)
class TabletopState:
    """Everything that decides the rest of an episode: simulator, task and random generator."""

    physics: np.ndarray
    episode: _Episode
    rng: dict[str, Any]


class TabletopReturnEnv(gym.Env[dict[str, Any], np.ndarray]):
    """A gantry gripper moves coloured cubes as told, then must remember where one of them was.

    **Action** ``Box(-1, 1, (4,), float32)``: velocity of the gripper to the right, to the back and
    up, as a fraction of 0.5 m/s, and of the grip, positive opens, as a fraction of 0.2 m/s per
    finger; held for one step of 0.2 s. Velocities are integrated into the set-points of stiff
    position servos; grasping is friction alone.

    **Observation** ``Dict``: ``image`` uint8 (H, W, 3) of a fixed camera in front; ``proprio``
    float32 (4,): gripper x, y, z [m] (z = height of the grasp point above the table) and opening
    (0 closed to 1 open).

    **Episode**: a list of instructions drawn from the seed. Each ends when it is achieved, that is
    the cube rests, released, within 2 cm of its place (inside the region, where a region was
    named) and the gripper is raised by 9 cm; or when ``steps_per_instruction`` steps are spent.
    The episode terminates with the last instruction. It is never truncated.

    **Reward** ``10 * (d_before - d_after) + 1.0 * achieved``, where d is ``distance_m`` of the
    instruction that was in force during the step, before and after it.

    **Info**

    - ``instruction`` (str), ``instruction_index`` (int): what is asked now, for the next action.
    - ``distance_m`` (float): from the asked cube to its place, or to the region; ``success``
      (bool): the cube rests, released, where it should. In the info of a step that ended an
      instruction both still speak of the ended one.
    - ``distance_to_first_m`` (dict): each cube's distance to where it stood at the start.
    - ``instruction_results`` (list of dict): ``instruction``, ``cube``, ``target_xy`` [m],
      ``distance_m``, ``success`` of every instruction that ended.
    - ``is_success`` (bool): the episode is over and every instruction of it succeeded. (A recall
      alone also succeeds where the cube never left, so judge a memory by both.)

    Args:
        level: 1 to 4, sets ``num_cubes`` and ``num_moves`` to the level.
        recall: ``"none"`` (moves only), ``"first"`` (last instruction: return a cube to where it
            stood at the start) or ``"previous"`` (to where it stood before its latest move; needs
            two moves, which is also its default at level 1).
        num_cubes: 1 to 4, overrides the level.
        num_moves: 1 to 8 moves before the recall, overrides the level.
        num_moves_before: how many of these are of other cubes, before the recalled one first moves;
            None draws for each episode, evenly, how many moves follow the one that leaves the
            place asked for, and for ``"previous"`` then how many of the others come before.
        steps_per_instruction: step budget of one instruction.
        image_size: height and width of the observed image in pixels, one number or a pair.
        render_size: likewise for :meth:`render`; the size of the observed image by default.
        render_quality: ``"fast"`` (flat, for many steps a second) or ``"pretty"`` (shadows,
            textures, smooth edges; slow), for both. It does not touch the physics: the same seed
            and actions replay the same episode in either.
        render_mode: ``"rgb_array"`` or None.

    Raises:
        ValueError: for an argument or an action outside what is described here.
    """

    metadata = {  # noqa: RUF012 (Gymnasium declares it without ClassVar)
        "render_modes": ["rgb_array"],
        "render_fps": round(1 / CONTROL_TIMESTEP),
    }

    def __init__(
        self,
        level: int = 1,
        recall: Recall = "first",
        num_cubes: int | None = None,
        num_moves: int | None = None,
        num_moves_before: int | None = 0,
        steps_per_instruction: int = 32,
        image_size: int | tuple[int, int] = 64,
        render_size: int | tuple[int, int] | None = None,
        render_quality: RenderQuality = "fast",
        render_mode: str | None = "rgb_array",
    ) -> None:
        _check_choice("recall", recall, RECALLS)
        _check_choice("render_quality", render_quality, RENDER_QUALITIES)
        _check_choice("render_mode", render_mode, (None, "rgb_array"))
        _check_range("level", level, 1, len(CUBE_COLOURS))
        least_moves = LEAST_MOVES[recall]
        num_cubes = level if num_cubes is None else num_cubes
        num_moves = max(level, least_moves) if num_moves is None else num_moves
        _check_range("num_cubes", num_cubes, 1, len(CUBE_COLOURS))
        _check_range("num_moves", num_moves, 1, MOST_MOVES)
        if num_moves < least_moves:
            raise ValueError(
                "recall='previous' asks for a cube that moved twice, but num_moves is 1; use "
                "num_moves=2 or more, or recall='first'."
            )
        most_before = most_moves_before(num_cubes, num_moves, recall)
        if num_moves_before is not None:
            _check_whole("num_moves_before", num_moves_before, 0, most_before)
            if not 0 <= num_moves_before <= most_before:
                raise ValueError(
                    f"num_moves_before must be from 0 to {most_before} with recall={recall!r}, "
                    f"num_cubes={num_cubes} and num_moves={num_moves}, got {num_moves_before}."
                )
        _check_range("steps_per_instruction", steps_per_instruction, 1, 10_000)
        image_size = _as_size("image_size", image_size)
        render_size = image_size if render_size is None else _as_size("render_size", render_size)

        self.render_mode = render_mode
        self._recall: Recall = recall
        self._num_cubes = num_cubes
        self._num_moves = num_moves
        self._num_moves_before = num_moves_before
        self._steps_per_instruction = steps_per_instruction

        self.model = build_model(num_cubes, NUM_PADS, render_quality)
        self.data = mujoco.MjData(self.model)
        self._servo_qpos = np.array([self.model.joint(name).qposadr[0] for name in _SERVOS])
        self._substeps = round(CONTROL_TIMESTEP / self.model.opt.timestep)
        self._camera = Camera(self.model, "front", image_size, render_quality)
        self._render_camera = (
            self._camera
            if render_size == image_size
            else Camera(self.model, "front", render_size, render_quality)
        )
        self._episode: _Episode | None = None
        self._cube_index: dict[str, int] = {}

        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space = gym.spaces.Dict(
            image=gym.spaces.Box(0, 255, (*image_size, 3), np.uint8),
            proprio=gym.spaces.Box(_OBSERVATION_LOW, _OBSERVATION_HIGH, dtype=np.float32),
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        plan = draw_episode(
            self.np_random,
            self._num_cubes,
            self._num_moves,
            self._recall,
            self._num_moves_before,
        )
        mujoco.mj_resetData(self.model, self.data)
        for index, xy in enumerate(plan.pads.values()):
            self.data.mocap_pos[index, :2] = xy
        for index, xy in enumerate(plan.cubes.values()):
            self.data.joint(f"cube_{index}").qpos[:2] = xy
        start = self.np_random.uniform((-0.20, -0.16, 0.10), (0.20, 0.16, 0.15))
        servos = np.array([*start, FINGER_STROKE, FINGER_STROKE])
        self.data.qpos[self._servo_qpos] = self.data.act[:] = servos
        mujoco.mj_forward(self.model, self.data)
        self._begin(_Episode(plan, 0, self._steps_per_instruction, False, dict(plan.cubes), []))
        return self._observation(), self._info()

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], SupportsFloat, bool, bool, dict[str, Any]]:
        reward, terminated, truncated, info = self.advance(action)
        return self._observation(), reward, terminated, truncated, info

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Step without an observation: several times faster, because nothing is drawn.

        Returns:
            Reward, terminated, truncated and info, as of :meth:`step`.
        """
        episode = self._running_episode()
        if episode.terminated:
            raise RuntimeError("The episode is over: call reset() before the next step().")
        velocity = _check_action(action)
        distance_before = self.distance_m
        self.data.ctrl[:3] = velocity[:3] * MAX_SPEED
        self.data.ctrl[3:] = velocity[3] * MAX_FINGER_SPEED
        mujoco.mj_step(self.model, self.data, self._substeps)
        # mj_step leaves contacts and body poses as they were before its last substep.
        mujoco.mj_forward(self.model, self.data)
        info = self._info()
        achieved = info["success"] and self.gripper_position[2] >= CLEAR_HEIGHT
        reward = PROGRESS_REWARD * (distance_before - info["distance_m"])
        reward += SUCCESS_REWARD * achieved
        episode.steps_left -= 1
        if achieved or episode.steps_left == 0:
            self._end_instruction(info["distance_m"], info["success"])
            info |= self._task_info()
        return float(reward), episode.terminated, False, info

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Return the present picture, uint8 (H, W, 3), or None where no render mode was chosen."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render mode; make it 'rgb_array'.")
            return None
        self._running_episode()
        return self._render_camera.render(self.data)

    def close(self) -> None:
        self._camera.close()
        self._render_camera.close()

    # What policies with privileged knowledge, tests and evaluations may read.

    @property
    def instruction(self) -> Instruction:
        """The instruction in force (the last one, when the episode is over)."""
        episode = self._running_episode()
        return episode.plan.instructions[episode.index]

    @property
    def plan(self) -> EpisodePlan:
        """Where everything started and all that is asked in this episode."""
        return self._running_episode().plan

    @property
    def target_xy(self) -> np.ndarray:
        """Where the asked cube should go, (2,) [m]."""
        episode = self._running_episode()
        if self.instruction.kind == "previous":
            return episode.moved_from[self.instruction.cube].copy()
        return np.array(self.instruction.target_xy)

    @property
    def distance_m(self) -> float:
        """From the asked cube to its place, or to the region [m], measured on the table."""
        position = self.cube_position(self.instruction.cube)
        return self.instruction.distance(position[:2], self.target_xy)

    @property
    def gripper_position(self) -> np.ndarray:
        """Grasp point between the fingertips, (3,) [m]."""
        return self.data.qpos[self._servo_qpos[:3]]

    @property
    def gripper_opening(self) -> float:
        """0 (closed) to 1 (open)."""
        fingers = self.data.qpos[self._servo_qpos[3:]]
        return float(np.clip(np.mean(fingers) / FINGER_STROKE, 0, 1))

    def cube_position(self, colour: str) -> np.ndarray:
        """Centre of a cube, (3,) [m]."""
        return self.data.joint(self._cube_name(colour)).qpos[:3].copy()

    def is_grasped(self, colour: str) -> bool:
        """Whether both fingers touch a cube."""
        cube = self.model.geom(self._cube_name(colour)).id
        touching = {int(g) for pair in self.data.contact.geom if cube in pair for g in pair}
        return {self.model.geom(name).id for name in _SERVOS[3:]} <= touching

    def is_placed(self) -> bool:
        """Whether the asked cube rests, released, where it should."""
        colour = self.instruction.cube
        joint = self.data.joint(self._cube_name(colour))
        tolerance = 0.0 if self.instruction.kind == "region" else SUCCESS_DISTANCE
        return bool(
            self.distance_m <= tolerance
            and abs(joint.qpos[2] - CUBE_HALF_EDGE) < _REST_HEIGHT
            and np.linalg.norm(joint.qvel[:3]) < _REST_SPEED
            and not self.is_grasped(colour)
        )

    def get_state(self) -> TabletopState:
        """Return a copy of everything that decides the rest of the episode."""
        physics = np.empty(mujoco.mj_stateSize(self.model, _PHYSICS))
        mujoco.mj_getState(self.model, self.data, physics, _PHYSICS)
        episode = copy.deepcopy(self._running_episode())
        return TabletopState(physics, episode, dict(self.np_random.bit_generator.state))

    def set_state(self, state: TabletopState) -> None:
        """Continue from a state of this environment, or of one made with the same arguments.

        Raises:
            ValueError: the state belongs to an environment with another number of cubes.
        """
        size = mujoco.mj_stateSize(self.model, _PHYSICS)
        if state.physics.shape != (size,):
            raise ValueError(
                f"The state has {state.physics.size} numbers, this environment needs {size}; take "
                "it from an environment made with the same num_cubes."
            )
        mujoco.mj_setState(self.model, self.data, state.physics, _PHYSICS)
        mujoco.mj_forward(self.model, self.data)
        self.np_random.bit_generator.state = copy.deepcopy(state.rng)
        self._begin(copy.deepcopy(state.episode))

    def _begin(self, episode: _Episode) -> None:
        self._episode = episode
        for index, colour in enumerate(episode.plan.cubes):
            self.model.geom(f"cube_{index}").rgba[:] = (*CUBE_COLOURS[colour], 1)
        for index, colour in enumerate(episode.plan.pads):
            self.model.geom(f"pad_{index}").rgba[:] = (*PAD_COLOURS[colour], 1)
        self._cube_index = {colour: i for i, colour in enumerate(episode.plan.cubes)}

    def _end_instruction(self, distance_m: float, success: bool) -> None:
        episode, ended = self._running_episode(), self.instruction
        episode.results.append(
            {
                "instruction": ended.text,
                "cube": ended.cube,
                "target_xy": [float(v) for v in self.target_xy],
                "distance_m": distance_m,
                "success": success,
            }
        )
        if episode.index + 1 == len(episode.plan.instructions):
            episode.terminated = True
            return
        episode.index += 1
        episode.steps_left = self._steps_per_instruction
        following = self.instruction
        if following.kind in ("pad", "region"):
            episode.moved_from[following.cube] = self.cube_position(following.cube)[:2]

    def _running_episode(self) -> _Episode:
        if self._episode is None:
            raise RuntimeError("The episode has not begun: call reset() first.")
        return self._episode

    def _cube_name(self, colour: str) -> str:
        try:
            return f"cube_{self._cube_index[colour]}"
        except KeyError:
            raise ValueError(
                f"There is no {colour} cube in this episode; its cubes are "
                f"{', '.join(self._cube_index)}."
            ) from None

    def _observation(self) -> dict[str, np.ndarray]:
        proprio = np.array([*self.gripper_position, self.gripper_opening], np.float32)
        return {
            "image": self._camera.render(self.data),
            "proprio": np.clip(proprio, _OBSERVATION_LOW, _OBSERVATION_HIGH),
        }

    def _info(self) -> dict[str, Any]:
        first = self.plan.cubes
        return {
            "distance_m": self.distance_m,
            "success": self.is_placed(),
            "distance_to_first_m": {
                colour: float(np.linalg.norm(self.cube_position(colour)[:2] - xy))
                for colour, xy in first.items()
            },
            **self._task_info(),
        }

    def _task_info(self) -> dict[str, Any]:
        episode = self._running_episode()
        return {
            "instruction": self.instruction.text,
            "instruction_index": episode.index,
            "instruction_results": copy.deepcopy(episode.results),
            "is_success": episode.terminated and all(r["success"] for r in episode.results),
        }


def make_tabletop_return(
    render_mode: str | None = "rgb_array", **kwargs: Any
) -> gym.Env[dict[str, Any], np.ndarray]:
    """What ``gymnasium.make`` makes: the environment, in a window where that is asked for.

    Args:
        render_mode: as of :class:`TabletopReturnEnv`, or ``"human"``, which shows its pictures in
            a window of ``render_size`` and needs a display and pygame.
        **kwargs: of :class:`TabletopReturnEnv`.

    Raises:
        ValueError: for an argument that makes no sense, or where there is no display.
    """
    if render_mode != "human":
        return TabletopReturnEnv(render_mode=render_mode, **kwargs)
    if not has_display():
        raise ValueError(
            "render_mode='human' finds no display for its window; use render_mode='rgb_array', or "
            "set DISPLAY to a display."
        )
    return gym.wrappers.HumanRendering(TabletopReturnEnv(**kwargs))


# Gymnasium asks what it makes an environment with, and adapts to the modes that it finds.
make_tabletop_return.metadata = {  # type: ignore[attr-defined]
    **TabletopReturnEnv.metadata,
    "render_modes": ["human", "rgb_array"],
}


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"{name}={value!r} is unknown; choose from {known}.")


def _check_whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name}={value!r} is not a whole number; use {low} to {high}.")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    _check_whole(name, value, low, high)
    if not low <= value <= high:
        raise ValueError(f"{name}={value} is out of range; use {low} to {high}.")


def _as_size(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    size = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(size) != 2:
        raise ValueError(f"{name}={value!r} is no size; use one number or (height, width).")
    for extent in size:
        _check_range(name, extent, 16, 2048)
    return int(size[0]), int(size[1])


def _check_action(action: np.ndarray) -> np.ndarray:
    try:
        values = np.asarray(action, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"The action {action!r} is no array of 4 numbers.") from None
    if values.shape != (4,):
        raise ValueError(f"The action has shape {values.shape}; it must have shape (4,).")
    if not np.all(np.abs(values) <= 1 + 1e-6):  # also true for NaN
        raise ValueError(f"The action {values.tolist()} must be finite and within [-1, 1].")
    return values
