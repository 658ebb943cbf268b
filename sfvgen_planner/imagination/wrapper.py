"""A Gymnasium wrapper that behaves as its environment and can also imagine its futures.

Several of them can share a world model and a memory: what they imagine and what their memories
learn then is one batch. The wrapper itself is the batch of one.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from sfvgen_planner.data.camera import camera_frame, check_camera
from sfvgen_planner.data.rollout import told_instruction
from sfvgen_planner.errors import SfvgenError, require, require_count
from sfvgen_planner.imagination.batch import StepResult, imagine_batch, step_batch
from sfvgen_planner.imagination.env_checks import check_action_space, check_steps
from sfvgen_planner.imagination.live_episode import LiveEpisode
from sfvgen_planner.imagination.memory_lives import Life, begin_lives, check_memory
from sfvgen_planner.imagination.result import Imagination

if TYPE_CHECKING:
    import torch

    from sfvgen_planner.memory import EpisodicMemory, MemoryBank, MemoryWrite, NearestMemory
    from sfvgen_planner.world_model import VideoWorldModel

logger = logging.getLogger(__name__)

MAX_WINDOWS = 8
"""Windows of the world model that may be imagined ahead, unless told otherwise."""


class _Uncopied(dict[str, Any]):
    """Arguments that ``env.spec`` of the wrappers around must hold no second copy of: weights."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Uncopied:
        return self


class ImaginationWrapper(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Behave exactly as ``env``, watch its camera, and imagine from the present moment.

    Every step is one video frame of the world model. Frames are grouped into chunks of
    ``num_future_frames``: the frame of ``reset`` opens the episode, chunk ``i`` is frames
    ``i * F + 1 .. (i + 1) * F``, and its previous chunk is the up to ``num_past_frames`` frames
    before it. As soon as a chunk is complete the memory fast-learns it (paper, Algorithm 1a).

    Args:
        env: any Gymnasium environment with a camera, that is an image observation, an ``"image"``
            entry in a Dict observation, or ``render_mode="rgb_array"``, and with the continuous
            actions that the model was trained on.
        world_model: the slow weights.
        memory: the fast weights, learnt from what the camera sees and reset with the env;
            ``None`` imagines from the context window alone, also where the model has a memory.
        bank: records every episode with its memory, chunk by chunk; where an episode begins with
            the scene of an earlier one, it starts from that one's memory instead of an empty one,
            and ``recalled`` tells which. One opened with ``mode="r"`` records nothing. Needs a
            memory.
        memory_index: which of the memory's ``num_memories`` is this env's own. Envs that share a
            world model and a memory are stepped together by :func:`step_batch` and imagine
            together by :func:`imagine_batch`.
        max_frames: how far ahead it may imagine, because a model that feeds on its own output
            drifts; by default eight windows of ``num_past_frames + num_future_frames``.
        measure_writes: measure what each write of the memory did, for two further calls of the
            denoiser. The ``info`` of the step that completes a chunk then has ``"memory_write"``:
            the denoising losses of that chunk, ``"loss_without"`` the memory and with it,
            ``"loss_before"`` and ``"loss_after"`` the write. If False, ``memory_writes`` has NaN
            in their place.

    Raises:
        SfvgenError: where the env's actions, camera or time step do not fit the world model, the
            memory belongs to another one or is missing, or the bank was opened before the memory
            was attached.

    Example:
        >>> from sfvgen_planner.data.environment import make_env
        >>> from sfvgen_planner.world_model import load_world_model
        >>> env = ImaginationWrapper(make_env("sfvgen/TabletopReturn-v0"), load_world_model())
        >>> observation, info = env.reset(seed=0)
        >>> env.imagine(instruction=info["instruction"]).frames.shape
        (1, 11, 64, 64, 3)
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        world_model: VideoWorldModel,
        memory: EpisodicMemory | None = None,
        bank: MemoryBank | None = None,
        memory_index: int = 0,
        max_frames: int | None = None,
        measure_writes: bool = True,
    ) -> None:
        RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            world_model=world_model,
            memory=memory,
            bank=bank,
            memory_index=memory_index,
            max_frames=max_frames,
            measure_writes=measure_writes,
        )
        self._saved_kwargs = _Uncopied(self._saved_kwargs)
        gym.Wrapper.__init__(self, env)
        if bank is not None and memory is None:
            raise SfvgenError("a bank keeps what a memory learns: give a memory too")
        if bank is not None:
            bank.check_model()
        if memory is not None:
            check_memory(memory, world_model)
            require_count("memory_index", memory_index, least=0)
            require(
                memory_index < memory.num_memories,
                f"memory_index must be from 0 to {memory.num_memories - 1}, the memory's "
                f"num_memories, got {memory_index}",
            )
        config = world_model.config
        check_action_space(env.action_space, config.action_low, config.action_high)
        check_steps(env, config.frame_skip)
        check_camera(env)
        if max_frames is None:
            max_frames = MAX_WINDOWS * (config.num_past_frames + config.num_future_frames)
        require_count("max_frames", max_frames)
        self.world_model = world_model
        self.memory = memory
        self.bank = bank
        self.memory_index = memory_index
        self.max_frames = max_frames
        self.measure_writes = measure_writes
        self.life = Life()
        self.recalled: NearestMemory | None = None
        self.num_episodes = 0
        self.live_episode = self._new_episode()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the env and forget the episode: its frames and the fast weights.

        With a bank, the fast weights are those of an earlier episode of the same scene, if any.
        """
        observation, info = self.env.reset(seed=seed, options=options)
        self.live_episode.end()
        self.live_episode = self._new_episode(told_instruction(info))
        self.num_episodes += 1
        if self.memory is not None:
            begin_lives(self.memory, [self.memory_index], self.life)
        image_size = self.world_model.config.image_size
        self.live_episode.observe(camera_frame(self.env, observation, image_size))
        if self.bank is not None:
            self._recall(self.bank)
        return observation, info

    def step(self, action: Any) -> StepResult:
        """Step the env, observe one frame, and write the memory when it completes a chunk."""
        return step_batch([self], [action])[0]

    def close(self) -> None:
        """Close the env and end the bank's recording."""
        self.live_episode.end()
        super().close()

    @property
    def num_steps(self) -> int:
        """Steps of the episode so far."""
        return self.live_episode.num_steps

    @property
    def memory_writes(self) -> list[MemoryWrite]:
        """What each write of the memory did in the episode so far."""
        return self.live_episode.memory_writes

    @property
    def past_frames(self) -> np.ndarray:
        """The last observed frames ``(f, H, W, 3)`` uint8, f from 1 to ``num_past_frames``.

        A memory that goes without the chunk as its input shortens them.
        """
        memory, config = self.memory, self.world_model.config
        num_past = config.num_past_frames if memory is None else memory.num_past_frames
        return self.live_episode.last_frames(num_past)

    def imagine(
        self,
        actions: np.ndarray | torch.Tensor | None = None,
        instruction: str | None = None,
        num_samples: int = 1,
        num_frames: int | None = None,
        num_inference_steps: int = 4,
        guidance_scale: float = 1.0,
        seed: int | None = None,
    ) -> Imagination:
        """Imagine futures from the present moment; the simulator is not touched.

        Args:
            actions: one sequence ``(T, A)`` or candidates ``(N, T, A)`` in env units.
            instruction: a language command.
            num_samples: futures with different noise; only for one or no action sequence, because
                candidates share their noise, so that their costs differ by their actions alone.
            num_frames: frames to imagine, as many as there are actions, or else what the model
                makes in one go, by default: a chunk, and at the beginning of an episode, where it
                sees a single frame, ``num_past_frames - 1`` more. Beyond that, up to
                ``max_frames``, the model feeds on its own output.
            num_inference_steps: denoiser calls per chunk.
            guidance_scale: above 1, the future follows the instruction more closely, at twice the
                denoiser calls.
            seed: of the noise; by default every call differs.

        Returns:
            The futures: N = number of candidates, or ``num_samples``.

        Raises:
            SfvgenError: before :meth:`reset`, beyond ``max_frames``, or where the arguments do not
                fit the model.
        """
        return imagine_batch(
            [self],
            None if actions is None else [actions],
            [instruction],
            num_samples,
            num_frames,
            num_inference_steps,
            guidance_scale,
            [seed],
        )[0]

    def _new_episode(self, instruction: str = "") -> LiveEpisode:
        config = self.world_model.config
        return LiveEpisode(config.num_past_frames, config.num_future_frames, instruction)

    def _recall(self, bank: MemoryBank) -> None:
        """Start from an earlier episode of the scene, if any; begin to record, if asked to."""
        assert self.memory is not None
        frame = self.past_frames[-1]
        nearest = bank.nearest(frame)
        self.recalled = None
        if nearest is not None and nearest.is_same_scene:
            try:
                self.memory.load(nearest.state(), self.memory_index)
                self.recalled = nearest
            except SfvgenError as error:
                # An old episode that is damaged, or of other settings, must not end this one.
                logger.warning(
                    "%s knows this scene, but the episode begins with an empty memory: %s",
                    bank.path,
                    error,
                )
        if bank.mode == "a":
            self.live_episode.recording = bank.begin(frame)
