"""Stepping and imagining several wrappers that share a world model and a memory.

What they imagine, and what their memories learn, is one batch each; one wrapper alone is the batch
of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, SupportsFloat

import gymnasium as gym
import numpy as np
import torch

from sfvgen_planner.data.actions import check_action
from sfvgen_planner.data.camera import camera_frame
from sfvgen_planner.data.rollout import told_instruction
from sfvgen_planner.errors import SfvgenError, require, require_count
from sfvgen_planner.generators import seeded_generator
from sfvgen_planner.imagination.live_episode import LivedChunk, LiveEpisode
from sfvgen_planner.imagination.memory_lives import Life, check_lives
from sfvgen_planner.imagination.result import Imagination

if TYPE_CHECKING:
    from sfvgen_planner.memory import EpisodicMemory, MemoryWrite
    from sfvgen_planner.world_model import VideoWorldModel

StepResult = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]
"""What ``gymnasium.Env.step`` returns."""


class ImaginingEnv(Protocol):
    """What an :class:`~sfvgen_planner.imagination.ImaginationWrapper` is to these functions."""

    env: gym.Env[Any, Any]
    world_model: VideoWorldModel
    memory: EpisodicMemory | None
    memory_index: int
    max_frames: int
    measure_writes: bool
    live_episode: LiveEpisode
    life: Life

    @property
    def action_space(self) -> gym.Space[Any]: ...

    @property
    def past_frames(self) -> np.ndarray: ...


def step_batch(imaginations: Sequence[ImaginingEnv], actions: Sequence[Any]) -> list[StepResult]:
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
            none of them is stepped. What an env itself raises, such as one that refuses an action
            beyond its bounds, ends the call too: those before it have made their step.
    """
    _, memory = _shared(imaginations)
    require(
        len(actions) == len(imaginations),
        f"{len(imaginations)} envs need as many actions, got {len(actions)}",
    )
    require(
        len({id(own) for own in imaginations}) == len(imaginations),
        "an env can be stepped only once at a time, but one is given twice",
    )
    for own, action in zip(imaginations, actions, strict=True):
        check_action(action, own.action_space)
    try:
        results = [_step(own, action) for own, action in zip(imaginations, actions, strict=True)]
    finally:
        # Where one env refuses its action, what the others have seen is learnt all the same.
        written = _write_complete_chunks(memory, imaginations)
    return [
        _with_write(result, own.live_episode.memory_writes[-1])
        if own.measure_writes and own in written
        else result
        for own, result in zip(imaginations, results, strict=True)
    ]


def imagine_batch(
    imaginations: Sequence[ImaginingEnv],
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
    one call of the model, or more where some envs have seen fewer than ``num_past_frames`` frames
    or trust their imagination for less than a chunk.

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
    if num_frames is not None:
        require_count("num_frames", num_frames)
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
    contexts = [num_past if past.shape[2] >= num_past else 1 for past in pasts]
    # What is left open is a chunk, as far as it is trusted.
    lengths = [
        own.max_frames if is_one_chunk and window - context > own.max_frames else num_frames
        for own, context in zip(imaginations, contexts, strict=True)
    ]
    kinds = list(zip(contexts, lengths, strict=True))
    imagined: dict[int, Imagination] = {}
    for context_length, frames_ahead in dict.fromkeys(kinds):
        rows = [row for row, own in enumerate(kinds) if own == (context_length, frames_ahead)]
        past = torch.cat([pasts[row][:, :, -context_length:] for row in rows])
        chosen = [own for own in (candidates[row] for row in rows) if own is not None]
        memories = [imaginations[row].memory_index for row in rows]
        with model.without_memory() if memory is None else memory.showing(memories):
            output = model(
                past.repeat_interleave(share, dim=0),
                instruction=[texts[row] for row in rows for _ in range(share)],
                actions=torch.cat(chosen) if chosen else None,
                num_frames=frames_ahead,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=[seeded_generator(own_seeds[row]) for row in rows],
                output_type="latent",
                common_noise=share > num_samples,  # candidates
                samples_per_generator=share,
            )
        for row, latents in zip(rows, output.latents.split(share), strict=True):
            present = pasts[row][0, :, -1]
            imagined[row] = Imagination(latents, present, model, texts[row], candidates[row])
    return [imagined[row] for row in range(count)]


def _shared(
    imaginations: Sequence[ImaginingEnv],
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
            if own.live_episode.has_begun:
                check_lives(memory, [own.memory_index], own.life)
    return model, memory


def _step(own: ImaginingEnv, action: Any) -> StepResult:
    """Step the env and observe one frame; a chunk that is complete now waits to be written."""
    result = own.env.step(action)
    config = own.world_model.config
    # Some envs clip what is out of range; a memory and a bank keep what the model can take.
    low, high = np.float32(config.action_low), np.float32(config.action_high)
    own.live_episode.step(
        np.clip(np.asarray(action, np.float32), low, high),
        camera_frame(own.env, result[0], config.image_size),
        told_instruction(result[4]),
    )
    return result


def _with_write(result: StepResult, write: MemoryWrite) -> StepResult:
    """A step that completed a chunk, with what the write of it did."""
    observation, reward, terminated, truncated, info = result
    return observation, reward, terminated, truncated, {**info, "memory_write": write.losses}


def _write_complete_chunks(
    memory: EpisodicMemory | None, imaginations: Sequence[ImaginingEnv]
) -> list[ImaginingEnv]:
    """Write what is complete; of which envs it was."""
    complete = [own for own in imaginations if own.live_episode.is_chunk_complete]
    chunks = [own.live_episode.take_chunk() for own in complete]
    if memory is None or not complete:
        return []
    try:
        _write_chunks(memory, complete, chunks)
    except BaseException:
        # What comes later must not look as if it followed on a chunk that a bank lacks.
        for own in complete:
            if own.live_episode.recording is not None:
                own.live_episode.recording.close()
        raise
    return complete


def _write_chunks(
    memory: EpisodicMemory, imaginations: Sequence[ImaginingEnv], lived: Sequence[LivedChunk]
) -> None:
    """Write a chunk of each env into the memory, and both into the banks."""
    size = len(lived[0].actions)
    frames = [own.past_and_chunk for own in lived]
    longest = max(map(len, frames))
    # The world stood still before an episode's first frame.
    pasts = [
        np.concatenate([own[:1].repeat(longest - len(own), axis=0), own[:-size]]) for own in frames
    ]
    chunks = [own[-size:] for own in frames]
    writes = memory.write_batch(
        np.stack(pasts),
        np.stack(chunks),
        [own.instructions[-1] for own in lived],
        np.stack([own.actions for own in lived]),
        [imagination.memory_index for imagination in imaginations],
        measure=any(imagination.measure_writes for imagination in imaginations),
    )
    for imagination, own, chunk, write in zip(imaginations, lived, chunks, writes, strict=True):
        imagination.live_episode.memory_writes.append(write)
        recording = imagination.live_episode.recording
        if recording is not None:
            state = memory.state(imagination.memory_index)
            recording.append(chunk, own.actions, own.instructions, state)


def _encoded_pasts(imaginations: Sequence[ImaginingEnv]) -> list[torch.Tensor]:
    """Latents ``(1, C, f, h, w)`` of each env's past frames.

    Encoded once per moment however many calls imagine it, and all that are new in one call.
    """
    new = [own for own in imaginations if own.live_episode.past_latents is None]
    if new:
        pasts = [own.past_frames for own in new]
        latents = new[0].world_model.encode(np.concatenate(pasts)[None])
        lengths = [len(past) for past in pasts]
        for own, encoded in zip(new, latents.split(lengths, dim=2), strict=True):
            own.live_episode.past_latents = encoded
    episodes = [own.live_episode for own in imaginations]
    return [own.past_latents for own in episodes if own.past_latents is not None]


def _candidates(actions: np.ndarray | torch.Tensor | None, num_samples: int) -> torch.Tensor | None:
    """Actions as ``(N, T, A)``; what they hold is for the model to check."""
    require_count("num_samples", num_samples)
    if actions is None:
        return None
    if isinstance(actions, np.ndarray):
        # PyTorch takes no reversed views.
        actions = np.ascontiguousarray(actions)
    try:
        candidates = torch.as_tensor(actions, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError) as error:
        raise SfvgenError(f"actions must be numbers, got {actions!r}") from error
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
