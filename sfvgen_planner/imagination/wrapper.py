"""A Gymnasium wrapper that behaves as its environment and can also imagine its futures.

Several of them can share a world model and a memory: what they imagine and what their memories
learn then is one batch. The wrapper itself is the batch of one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs

from sfvgen_planner.data.camera import camera_frame, check_camera
from sfvgen_planner.data.frame_skip import FrameSkip
from sfvgen_planner.data.rollout import told_instruction
from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.imagination.env import WorldModelEnv
from sfvgen_planner.imagination.memory_lives import begin_lives, check_lives, check_memory
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

logger = logging.getLogger(__name__)

StepResult = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]
"""What ``gymnasium.Env.step`` returns."""

MAX_WINDOWS = 8
"""Windows of the world model that may be imagined ahead, unless told otherwise."""


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
        (1, 8, 64, 64, 3)
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
        # Without deepcopy: env.spec must not hold a second copy of the weights.
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
        gym.Wrapper.__init__(self, env)
        if bank is not None and memory is None:
            raise SfvgenError("a bank keeps what a memory learns: give a memory too")
        if bank is not None:
            bank.check_model()
        if memory is not None:
            check_memory(memory, world_model)
            require(
                0 <= memory_index < memory.num_memories,
                f"memory_index must be from 0 to {memory.num_memories - 1}, the memory's "
                f"num_memories, got {memory_index}",
            )
        config = world_model.config
        check_action_space(env.action_space, config.action_low, config.action_high)
        check_frame_skip(env, config.frame_skip)
        check_camera(env)
        if max_frames is None:
            max_frames = MAX_WINDOWS * (config.num_past_frames + config.num_future_frames)
        require(max_frames >= 1, f"max_frames must be at least 1, got {max_frames}")
        self.world_model = world_model
        self.memory = memory
        self.bank = bank
        self.memory_index = memory_index
        self.max_frames = max_frames
        self.measure_writes = measure_writes
        self.memory_writes: list[MemoryWrite] = []
        self.recalled: NearestMemory | None = None
        self.num_steps = 0
        self.num_episodes = 0
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
        self.num_episodes += 1
        if self.memory is not None:
            begin_lives(self.memory, [self.memory_index], self)
        self._observe(observation)
        self._instruction = told_instruction(info)
        if self.bank is not None:
            self._recall(self.bank)
        return observation, info

    def step(self, action: Any) -> StepResult:
        """Step the env, observe one frame, and write the memory when it completes a chunk."""
        return step_batch([self], [action])[0]

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
                default. Beyond a chunk, up to ``max_frames``, the model feeds on its own output.
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

    def _recall(self, bank: MemoryBank) -> None:
        """Start from an earlier episode of the scene, if any; begin to record, if asked to."""
        assert self.memory is not None
        if self._recording is not None:
            self._recording.close()
        frame = self.past_frames[-1]
        nearest = bank.nearest(frame)
        self.recalled = None
        if nearest is not None and nearest.is_same_scene:
            state = nearest.state()
            if self.memory.takes(state):
                self.recalled = nearest
                self.memory.load(state, self.memory_index)
            else:
                logger.warning(
                    "%s knows this scene, but by a memory of other settings: the episode begins "
                    "with an empty one",
                    bank.path,
                )
        if bank.mode == "a":
            self._recording = bank.begin(frame)

    def _advance(self, action: Any) -> StepResult:
        """Step the env and observe one frame; a chunk that is complete now waits to be written."""
        result = self.env.step(action)
        self.num_steps += 1
        self._observe(result[0])
        # Some envs clip what is out of range; a memory and a bank keep what the model can take.
        low, high = self.world_model.config.action_low, self.world_model.config.action_high
        taken = np.clip(np.asarray(action, np.float32), np.float32(low), np.float32(high))
        self._chunk.append((taken, self._instruction))
        self._instruction = told_instruction(result[4])
        return result

    def _observe(self, observation: Any) -> None:
        # An environment may draw the next frame into the same memory.
        self._frames.append(camera_frame(self.env, observation, self._image_size).copy())
        self._past_latents = None

    def _generator(self, seed: int | None) -> torch.Generator:
        """Noise of a seed, or else of a new one at every call."""
        seed = int(self._seeds.integers(2**63)) if seed is None else seed
        return torch.Generator().manual_seed(int(seed))


def step_batch(
    imaginations: Sequence[ImaginationWrapper], actions: Sequence[Any]
) -> list[StepResult]:
    """Step several envs; memories that a chunk is complete for are written in one batch.

    Args:
        imaginations: those that are stepped, of one world model and one memory; others, such as
            those whose episode has ended, rest and cost nothing.
        actions: one for each.

    Returns:
        What ``step`` of each returns.

    Raises:
        SfvgenError: where they do not share their world model and memory, one is given twice, or
            there are not as many actions, or one of them has another shape or is not finite; then
            none of them is stepped.
    """
    model, memory = _shared(imaginations)
    require(
        len(actions) == len(imaginations),
        f"{len(imaginations)} envs need as many actions, got {len(actions)}",
    )
    require(
        len({id(own) for own in imaginations}) == len(imaginations),
        "an env can be stepped only once at a time, but one is given twice",
    )
    for own, action in zip(imaginations, actions, strict=True):
        _check_action(action, own.action_space)
    try:
        results = [own._advance(action) for own, action in zip(imaginations, actions, strict=True)]
    finally:
        # Where one env refuses its action, what the others have seen is learnt all the same.
        written = _write_complete_chunks(memory, imaginations, model.config.num_future_frames)
    return [
        _with_write(result, own.memory_writes[-1])
        if own.measure_writes and own in written
        else result
        for own, result in zip(imaginations, results, strict=True)
    ]


def _check_action(action: Any, space: gym.Space[Any]) -> None:
    values = np.asarray(action, np.float32)
    require(
        values.shape == space.shape and bool(np.isfinite(values).all()),
        f"an action must be {space.shape} finite numbers, got {action!r}",
    )


def _with_write(result: StepResult, write: MemoryWrite) -> StepResult:
    """A step that completed a chunk, with what the write of it did."""
    observation, reward, terminated, truncated, info = result
    return observation, reward, terminated, truncated, {**info, "memory_write": write.losses}


def _write_complete_chunks(
    memory: EpisodicMemory | None, imaginations: Sequence[ImaginationWrapper], size: int
) -> list[ImaginationWrapper]:
    """Write what is complete; of which envs it was."""
    complete = [imagination for imagination in imaginations if len(imagination._chunk) == size]
    try:
        if memory is None or not complete:
            return []
        _write_chunks(memory, complete)
        return complete
    except BaseException:
        # What comes later must not look as if it followed on a chunk that a bank lacks.
        for imagination in complete:
            if imagination._recording is not None:
                imagination._recording.close()
        raise
    finally:
        for imagination in complete:
            imagination._chunk = []


def imagine_batch(
    imaginations: Sequence[ImaginationWrapper],
    actions: Sequence[np.ndarray | torch.Tensor] | np.ndarray | torch.Tensor | None = None,
    instructions: Sequence[str | None] | None = None,
    num_samples: int = 1,
    num_frames: int | None = None,
    num_inference_steps: int = 4,
    guidance_scale: float = 1.0,
    seeds: Sequence[int | None] | None = None,
) -> list[Imagination]:
    """Imagine futures of several envs, each from its own present moment and under its own memory.

    Each gets what its own ``imagine`` gives with the same seed, as far as rounding allows. It is
    one call of the model, or two where some envs have seen fewer than ``num_past_frames`` frames.

    Args:
        imaginations: E of them, of one world model and one memory.
        actions: for each env one sequence ``(T, A)`` or N candidates ``(N, T, A)`` in env units,
            as many and as long for all.
        instructions: a language command, or None, for each.
        num_samples: futures of each env; see :meth:`ImaginationWrapper.imagine`.
        num_frames: likewise.
        num_inference_steps: likewise.
        guidance_scale: likewise.
        seeds: of the noise, one for each env; None differs at every call.

    Raises:
        SfvgenError: where the envs do not share their world model and memory, before a ``reset``,
            beyond the ``max_frames`` of one of them, or where the arguments do not fit the model or
            each other.
    """
    model, memory = _shared(imaginations)
    count = len(imaginations)
    given = [None] * count if actions is None else list(actions)
    texts = [None] * count if instructions is None else list(instructions)
    own_seeds = [None] * count if seeds is None else list(seeds)
    require(
        len(given) == len(texts) == len(own_seeds) == count,
        f"{count} envs need as many actions, instructions and seeds, got {len(given)}, "
        f"{len(texts)} and {len(own_seeds)}",
    )
    candidates = [_candidates(own, num_samples) for own in given]
    shapes = {None if own is None else tuple(own.shape) for own in candidates}
    require(len(shapes) == 1, f"all envs need as many actions, as long; got the shapes {shapes}")
    is_one_chunk = num_frames is None and candidates[0] is None
    length = num_frames or (0 if candidates[0] is None else candidates[0].shape[1])
    limit = min(own.max_frames for own in imaginations)
    require(
        length <= limit,
        f"{length} frames are further ahead than the {limit} that imagination is trusted for: plan "
        f"a shorter horizon, or make ImaginationWrapper(..., max_frames={length})",
    )
    share = num_samples if candidates[0] is None else len(candidates[0])
    window = model.config.num_past_frames + model.config.num_future_frames
    pasts = _encoded_pasts(imaginations)
    # The model takes contexts of full length or of one frame.
    num_past = model.config.num_past_frames
    lengths = [num_past if past.shape[2] >= num_past else 1 for past in pasts]
    imagined: dict[int, Imagination] = {}
    for length in sorted(set(lengths)):
        rows = [row for row, own in enumerate(lengths) if own == length]
        past = torch.cat([pasts[row][:, :, -length:] for row in rows])
        chosen = [own for own in (candidates[row] for row in rows) if own is not None]
        memories = [imaginations[row].memory_index for row in rows]
        with model.without_memory() if memory is None else memory.showing(memories):
            output = model(
                past.repeat_interleave(share, dim=0),
                instruction=[texts[row] for row in rows for _ in range(share)],
                actions=torch.cat(chosen) if chosen else None,
                num_frames=limit if is_one_chunk and window - length > limit else num_frames,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=[imaginations[row]._generator(own_seeds[row]) for row in rows],
                output_type="latent",
                common_noise=share > num_samples,  # candidates
                samples_per_generator=share,
            )
        for row, latents in zip(rows, output.latents.split(share), strict=True):
            present = pasts[row][0, :, -1]
            imagined[row] = Imagination(latents, present, model, texts[row], candidates[row])
    return [imagined[row] for row in range(count)]


def _shared(
    imaginations: Sequence[ImaginationWrapper],
) -> tuple[VideoWorldModel, EpisodicMemory | None]:
    """The world model and the memory of all envs, in which each lives its own episode."""
    require(len(imaginations) > 0, "there must be at least one env")
    model, memory = imaginations[0].world_model, imaginations[0].memory
    require(
        all(own.world_model is model and own.memory is memory for own in imaginations),
        "envs that are stepped or imagine together must share one world model and one memory",
    )
    if memory is not None:
        for own in imaginations:
            if own._frames:
                check_lives(memory, [own.memory_index], own)
    return model, memory


def _write_chunks(memory: EpisodicMemory, imaginations: Sequence[ImaginationWrapper]) -> None:
    """Write the chunks that are complete into the memory, and both into the banks."""
    size = len(imaginations[0]._chunk)
    frames = [np.stack(imagination._frames) for imagination in imaginations]
    longest = max(map(len, frames))
    # The world stood still before an episode's first frame.
    pasts = [
        np.concatenate([own[:1].repeat(longest - len(own), axis=0), own[:-size]]) for own in frames
    ]
    chunks = [own[-size:] for own in frames]
    acted = [np.stack([action for action, _ in own._chunk]) for own in imaginations]
    told = [[text for _, text in own._chunk] for own in imaginations]
    writes = memory.write_batch(
        np.stack(pasts),
        np.stack(chunks),
        [texts[-1] for texts in told],
        np.stack(acted),
        [imagination.memory_index for imagination in imaginations],
        measure=any(imagination.measure_writes for imagination in imaginations),
    )
    for row, imagination in enumerate(imaginations):
        imagination.memory_writes.append(writes[row])
        if imagination._recording is not None:
            state = memory.state(imagination.memory_index)
            imagination._recording.append(chunks[row], acted[row], told[row], state)


def _encoded_pasts(imaginations: Sequence[ImaginationWrapper]) -> list[torch.Tensor]:
    """Latents ``(1, C, f, h, w)`` of each env's past frames.

    Encoded once per moment however many calls imagine it, and all that are new in one call.
    """
    new = [imagination for imagination in imaginations if imagination._past_latents is None]
    if new:
        pasts = [imagination.past_frames for imagination in new]
        latents = new[0].world_model.encode(np.concatenate(pasts)[None])
        lengths = [len(past) for past in pasts]
        for imagination, own in zip(new, latents.split(lengths, dim=2), strict=True):
            imagination._past_latents = own
    return [own._past_latents for own in imaginations if own._past_latents is not None]


def _candidates(actions: np.ndarray | torch.Tensor | None, num_samples: int) -> torch.Tensor | None:
    """Actions as ``(N, T, A)``; what they hold is for the model to check."""
    if num_samples < 1:
        raise SfvgenError(f"num_samples must be at least 1, got {num_samples}")
    if actions is None:
        return None
    if isinstance(actions, np.ndarray):
        # PyTorch takes no reversed views.
        actions = np.ascontiguousarray(actions)
    candidates = torch.as_tensor(actions, dtype=torch.float32)
    if candidates.ndim == 2:
        return candidates.expand(num_samples, *candidates.shape)
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
    return candidates


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
    # Others' attributes of this name, as MuJoCo's, count what happens within a step.
    found = env.unwrapped.frame_skip if isinstance(env.unwrapped, WorldModelEnv) else 1
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
