"""A Gymnasium wrapper that behaves as its environment and can also imagine its futures."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs

from sfvgen_planner.data.camera import camera_frame
from sfvgen_planner.data.frame_skip import FrameSkip
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination.result import Imagination

if TYPE_CHECKING:
    from sfvgen_planner.memory import (
        EpisodeWriter,
        EpisodicMemory,
        MemoryBank,
        MemoryWrite,
        NearestMemory,
    )
    from sfvgen_planner.world_model import VideoWorldModel


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
            ``None`` imagines from the context window alone.
        bank: records every episode with its memory, chunk by chunk; where an episode begins with
            the scene of an earlier one, it starts from that one's memory instead of an empty one,
            and ``recalled`` tells which. Needs a memory.

    Raises:
        SfvgenError: where the env's actions, camera or time step do not fit the world model, or
            the bank was opened before the memory was attached.

    Example:
        >>> from sfvgen_planner.data.environment import make_env
        >>> from sfvgen_planner.world_model import load_world_model
        >>> env = ImaginationWrapper(make_env("sfvgen/TabletopReturn-v0"), load_world_model())
        >>> observation, info = env.reset(seed=0)
        >>> env.imagine(instruction=info["instruction"]).frames.shape
        (1, 8, 64, 64, 3)
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        world_model: VideoWorldModel,
        memory: EpisodicMemory | None = None,
        bank: MemoryBank | None = None,
    ) -> None:
        # Without deepcopy: env.spec must not hold a second copy of the weights.
        RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            world_model=world_model,
            memory=memory,
            bank=bank,
        )
        gym.Wrapper.__init__(self, env)
        if bank is not None and memory is None:
            raise SfvgenError("a bank keeps what a memory learns: give a memory too")
        if bank is not None:
            bank.check_model()
        config = world_model.config
        check_action_space(env.action_space, config.action_low, config.action_high)
        check_frame_skip(env, config.frame_skip)
        self.world_model = world_model
        self.memory = memory
        self.bank = bank
        self.memory_writes: list[MemoryWrite] = []
        self.recalled: NearestMemory | None = None
        self.num_steps = 0
        self._recording: EpisodeWriter | None = None
        self._instruction = ""
        self._chunk: list[tuple[np.ndarray, str]] = []
        self._image_size: int = config.image_size
        self._frames: deque[np.ndarray] = deque(
            maxlen=config.num_past_frames + config.num_future_frames
        )
        self._past_latents: torch.Tensor | None = None
        self._seeds = np.random.default_rng()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the env and forget the episode: its frames and the fast weights.

        With a bank, the fast weights are those of an earlier episode of the same scene, if any.
        """
        observation, info = self.env.reset(seed=seed, options=options)
        self._frames.clear()
        self.memory_writes = []
        self._chunk = []
        self.num_steps = 0
        if self.memory is not None:
            self.memory.reset()
        self._observe(observation)
        self._instruction = str(info.get("instruction", ""))
        if self.bank is not None:
            self._begin_recording(self.bank)
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the env, observe one frame, and write the memory when it completes a chunk."""
        result = self.env.step(action)
        self.num_steps += 1
        self._observe(result[0])
        self._chunk.append((np.array(action, np.float32), self._instruction))
        self._instruction = str(result[4].get("instruction", ""))
        chunk_size = self.world_model.config.num_future_frames
        if self.num_steps % chunk_size == 0:
            self._end_chunk(chunk_size)
        return result

    def close(self) -> None:
        """Close the env and end the bank's recording."""
        if self._recording is not None:
            self._recording.close()
            self._recording = None
        super().close()

    @property
    def past_frames(self) -> np.ndarray:
        """The last observed frames ``(f, H, W, 3)`` uint8, f from 1 to ``num_past_frames``.

        A memory that goes without the chunk as its input shortens them.
        """
        if not self._frames:
            raise SfvgenError("nothing has been observed yet: call reset() first")
        memory, config = self.memory, self.world_model.config
        num_past = config.num_past_frames if memory is None else memory.num_past_frames
        return np.stack(list(self._frames)[-num_past:])

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
            num_frames: frames to imagine, as many as there are actions, or else a chunk, by
                default. Any length works: the model goes on from its own output.
            num_inference_steps: denoiser calls per chunk.
            guidance_scale: above 1, the future follows the instruction more closely, at twice the
                denoiser calls.
            seed: of the noise; by default every call differs.

        Returns:
            The futures: N = number of candidates, or ``num_samples``.

        Raises:
            SfvgenError: before :meth:`reset`, or where the arguments do not fit the model.
        """
        common_noise = actions is not None and np.ndim(actions) == 3
        candidates, num_samples = self._candidates(actions, num_samples)
        past = self._encoded_past()
        seed = int(self._seeds.integers(2**63)) if seed is None else seed
        output = self.world_model(
            past.expand(num_samples, *past.shape[1:]),
            instruction=instruction,
            actions=candidates,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            common_noise=common_noise,
        )
        return Imagination(
            output.latents, past[0, :, -1], self.world_model, instruction, candidates
        )

    def _begin_recording(self, bank: MemoryBank) -> None:
        assert self.memory is not None
        if self._recording is not None:
            self._recording.close()
        frame = self.past_frames[-1]
        nearest = bank.nearest(frame)
        self.recalled = nearest if nearest is not None and nearest.is_same_scene else None
        if self.recalled is not None:
            self.memory.load(self.recalled.state())
        self._recording = bank.begin(frame)

    def _end_chunk(self, chunk_size: int) -> None:
        """Write the chunk that is complete into the memory, and both into the bank."""
        actions, instructions = zip(*self._chunk, strict=True)
        self._chunk = []
        if self.memory is None:
            return
        frames = np.stack(self._frames)
        past, chunk = frames[:-chunk_size], frames[-chunk_size:]
        write = self.memory.write(past, chunk, instructions[-1], np.stack(actions))
        self.memory_writes.append(write)
        if self._recording is not None:
            state = self.memory.state()
            self._recording.append(chunk, np.stack(actions), instructions, state)

    def _observe(self, observation: Any) -> None:
        # An environment may draw the next frame into the same memory.
        self._frames.append(camera_frame(self.env, observation, self._image_size).copy())
        self._past_latents = None

    def _encoded_past(self) -> torch.Tensor:
        """Latents of the past frames, encoded once per moment however many calls imagine it."""
        if self._past_latents is None:
            self._past_latents = self.world_model.encode(self.past_frames[None])
        return self._past_latents

    def _candidates(
        self, actions: np.ndarray | torch.Tensor | None, num_samples: int
    ) -> tuple[torch.Tensor | None, int]:
        """Actions as ``(N, T, A)``, and N; what they hold is for the model to check."""
        if num_samples < 1:
            raise SfvgenError(f"num_samples must be at least 1, got {num_samples}")
        if actions is None:
            return None, num_samples
        candidates = torch.as_tensor(actions, dtype=torch.float32)
        if candidates.ndim == 2:
            return candidates.expand(num_samples, *candidates.shape), num_samples
        if candidates.ndim != 3 or len(candidates) == 0:
            raise SfvgenError(
                "actions must have the shape (T, A), or (N, T, A) for N candidates, "
                f"got {tuple(candidates.shape)}"
            )
        if num_samples != 1:
            raise SfvgenError(
                f"num_samples={num_samples} needs one action sequence (T, A), got candidates "
                f"{tuple(candidates.shape)}, which share one sample of the noise"
            )
        return candidates, len(candidates)


def check_action_space(space: gym.Space[Any], low: list[float], high: list[float]) -> None:
    """Refuse an action space that differs from the one a model was trained on."""
    wanted = f"the world model was trained on Box({low}, {high}, ({len(low)},))"
    if not isinstance(space, gym.spaces.Box):
        raise SfvgenError(
            f"imagination needs a continuous (Box) action space; {wanted}, not {space}"
        )
    if not space.is_bounded("both"):
        raise SfvgenError(
            f"imagination needs a bounded action space; {wanted}, not {space}; "
            "gymnasium.wrappers.RescaleAction gives bounds"
        )
    if space.shape != (len(low),):
        raise SfvgenError(f"the env's actions have the shape {space.shape}, but {wanted}")
    if not (np.allclose(space.low, low) and np.allclose(space.high, high)):
        raise SfvgenError(
            f"the env's actions go from {space.low.tolist()} to {space.high.tolist()}, but "
            f"{wanted}; gymnasium.wrappers.RescaleAction converts"
        )


def check_frame_skip(env: gym.Env[Any, Any], frame_skip: int) -> None:
    """Refuse an env whose steps last longer or shorter than the frames of a model."""
    found = 1
    layer: gym.Env[Any, Any] = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, FrameSkip):
            found *= layer.num_steps
        layer = layer.env
    if found != frame_skip:
        raise SfvgenError(
            f"the world model's frames are {frame_skip} env steps apart, but one step of this env "
            f"makes {found}; wrap it as FrameSkip(env, {frame_skip})"
        )
