"""The memories that are compared: what each of them lets the model see of an episode's past."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sfvgen_planner.errors import require
from sfvgen_planner.evaluation.return_trials import Past, ReturnTrial
from sfvgen_planner.memory import (
    MEMORY_VARIANTS,
    EpisodicMemory,
    MemoryConfig,
    trained_config,
)
from sfvgen_planner.memory.contexts import CONTEXTS, Context, recent_frames
from sfvgen_planner.world_model import VideoWorldModel

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Variant:
    """What the model is given of an episode's past.

    Attributes:
        memory: name of the fast weights in `MEMORY_VARIANTS`; None for none.
        of_other_episode: give it the memory of another trial instead of the trial's own, a
            control: what helps then is not remembering.
        context: the frames that the next chunk is imagined from.
        num_noise_draws: noise levels averaged in a write; None for as many as the memory has.
    """

    memory: str | None = None
    of_other_episode: bool = False
    context: Context = recent_frames
    num_noise_draws: int | None = None


REFERENCE = "none"
OURS = "ours"
PAPER = "paper"
OTHER_EPISODE = "other_episode"
VARIANTS: dict[str, Variant] = {
    REFERENCE: Variant(),
    **{name: Variant(memory=name) for name, memory in MEMORY_VARIANTS.items() if memory},
    OTHER_EPISODE: Variant(memory=OURS, of_other_episode=True),
    **{name: Variant(context=CONTEXTS[name]) for name in ("anchor_frame", "long_context")},
}
"""Name to variant. ``none`` is what the others are compared with."""


def offered(names: Sequence[str], checkpoint: str) -> dict[str, Variant]:
    """The variants that can be compared on a checkpoint.

    Ours needs slow weights that were trained with it. Where they were not, the memory of another
    episode is the paper's.

    Args:
        names: of `VARIANTS`; empty for all there are.
        checkpoint: shipped name, checkpoint folder or Hub id.

    Raises:
        SfvgenError: ours is asked for by name, and the checkpoint has none.
    """
    chosen = {name: VARIANTS[name] for name in names or VARIANTS}
    if _is_ours(trained_config(checkpoint)):
        return chosen
    reason = f"{checkpoint} has been through no slow-fast loop with our memory (`sfvgen loop`)"
    require(OURS not in names, f"the variant {OURS} cannot be measured: {reason}")
    if chosen.pop(OURS, None) is not None:
        logger.warning("the variant %s is left out: %s", OURS, reason)
    if OTHER_EPISODE in chosen:
        chosen[OTHER_EPISODE] = replace(chosen[OTHER_EPISODE], memory=PAPER)
    return chosen


@contextmanager
def attached(
    variant: Variant, model: VideoWorldModel, checkpoint: str, num_memories: int = 1
) -> Iterator[EpisodicMemory | None]:
    """The variant's memory in the model for as long as the context lasts.

    Args:
        variant: what `offered` gives.
        model: the checkpoint's model.
        checkpoint: shipped name, checkpoint folder or Hub id; its own adapters are used where it
            was trained with these.
        num_memories: episodes remembered at a time.
    """
    if variant.memory is None:
        yield None
        return
    config = memory_settings(variant, checkpoint)
    trained = trained_config(checkpoint)
    if trained is not None and config.can_continue(trained):
        memory = EpisodicMemory.from_pretrained(
            model, checkpoint, num_memories, num_noise_draws=config.num_noise_draws
        )
    else:
        memory = EpisodicMemory(model, config, num_memories)
    try:
        yield memory
    finally:
        memory.detach()


def memory_settings(variant: Variant, checkpoint: str) -> MemoryConfig:
    """How a variant's memory learns: ours as the checkpoint's own, which sizes and codes are."""
    trained = trained_config(checkpoint)
    config = trained if variant.memory == OURS and _is_ours(trained) else None
    if config is None:
        assert variant.memory is not None
        config = MEMORY_VARIANTS[variant.memory]
    assert config is not None
    draws = variant.num_noise_draws
    return config if draws is None else replace(config, num_noise_draws=draws)


def _is_ours(config: MemoryConfig | None) -> bool:
    """Whether only B learns; sizes and codes may differ."""
    return config is not None and config.rule == "normalised"


def write_chunks(
    memory: EpisodicMemory, pasts: Sequence[Past]
) -> Iterator[tuple[list[int], slice]]:
    """Fast-learn the true frames of at most ``num_memories`` episodes at once, as the wrapper does.

    The frame of the reset opens an episode, then every ``num_future_frames`` make a chunk; what is
    left at the end is no chunk yet. Memories go on from what they hold.

    Yields:
        After each write, the rows of ``pasts`` that had a chunk there, and its steps.
    """
    model, size = memory.world_model, memory.world_model.config.num_future_frames
    latents = [model.encode(past.past[None])[0] for past in pasts]
    for start in range(0, max(len(past.actions) for past in pasts) - size + 1, size):
        rows = [row for row, past in enumerate(pasts) if len(past.actions) >= start + size]
        steps = slice(start, start + size)
        memory.write_batch(
            torch.stack([latents[row][:, : start + 1] for row in rows]),
            torch.stack([latents[row][:, start + 1 : start + size + 1] for row in rows]),
            [pasts[row].told[steps][-1] for row in rows],
            np.stack([pasts[row].actions[steps] for row in rows]),
            memories=rows,
            measure=False,
        )
        yield rows, steps


def learn(
    memory: EpisodicMemory,
    pasts: Sequence[Past],
    description: str,
    starts: Sequence[State] | None = None,
) -> list[State]:
    """What a memory holds of each episode; as many are learnt at once as it remembers.

    Args:
        memory: that learns.
        pasts: the episodes.
        description: of the progress bar.
        starts: what it holds as each episode begins; by default nothing.
    """
    states: list[State] = []
    total, size = len(pasts), memory.num_memories
    with tqdm(total=total, desc=description, unit="episode", dynamic_ncols=True) as progress:
        for first in range(0, total, size):
            some = pasts[first : first + size]
            memory.reset()
            for row, start in enumerate([] if starts is None else starts[first : first + size]):
                memory.load(start, row)
            for _ in write_chunks(memory, some):
                pass
            states += [memory.state(row) for row in range(len(some))]
            progress.update(len(some))
    return states


def remembered(variant: Variant, trials: Sequence[T]) -> list[T]:
    """Of each trial, or what belongs to it, the one that is remembered in its place.

    Raises:
        SfvgenError: another trial's is asked for, but there is only one.
    """
    own = list(trials)
    if not variant.of_other_episode:
        return own
    require(len(own) > 1, "the memory of another episode needs at least 2 episodes, got 1")
    return own[-1:] + own[:-1]


class TrialMemories:
    """The memory of each trial at the request, learnt when it is first asked for, and kept."""

    def __init__(self, trials: Sequence[ReturnTrial]) -> None:
        self._trials = trials
        self._states: dict[MemoryConfig, list[State]] = {}

    def states(self, variant: Variant, memory: EpisodicMemory, description: str) -> list[State]:
        """One state per trial: its own memory's, or that of the trial before it.

        Raises:
            SfvgenError: another trial's is asked for, but there is only one.
        """
        if memory.config not in self._states:
            self._states[memory.config] = learn(memory, self._trials, description)
        return remembered(variant, self._states[memory.config])


def imagine_returns(
    model: VideoWorldModel,
    trials: Sequence[ReturnTrial],
    variant: Variant,
    memory: EpisodicMemory | None,
    states: Sequence[State] | None,
    *,
    num_chunks: int,
    num_inference_steps: int,
    guidance_scale: float,
    batch_size: int,
    description: str,
) -> np.ndarray:
    """What the model imagines of each trial's request, from the present moment.

    A trial's noise depends on its seed alone, so every variant gets the same.

    Args:
        model: the slow weights.
        trials: N of them.
        variant: chooses the frames that a chunk is imagined from.
        memory: the variant's memory, in the model; as many trials are imagined at once as it
            remembers.
        states: what it holds for each trial.
        num_chunks: chunks to imagine.
        num_inference_steps: denoiser calls per chunk.
        guidance_scale: how closely the video follows the instruction.
        batch_size: trials imagined at once, where their contexts are as long and there is no
            memory.
        description: of the progress bar.

    Returns:
        ``(N, num_chunks * num_future_frames, H, W, 3)`` uint8.
    """
    num_past = model.config.num_past_frames if memory is None else memory.num_past_frames
    size = batch_size if memory is None else memory.num_memories
    histories = [model.encode(trial.past[None]) for trial in trials]
    lengths = [_context(variant, history, num_past).shape[2] for history in histories]
    frames: dict[int, np.ndarray] = {}
    with tqdm(total=len(trials), desc=description, unit="episode", dynamic_ncols=True) as progress:
        for rows in _batches(lengths, size):
            own = rows
            if memory is not None:
                assert states is not None
                # No memory goes without a trial; what is imagined twice is dropped.
                rows = own + own[-1:] * (size - len(own))
                for index, row in enumerate(rows):
                    memory.load(states[row], index)
            generators = [torch.Generator().manual_seed(trials[row].seed) for row in rows]
            chunks: list[Tensor] = []
            for _ in range(num_chunks):
                context = torch.cat(
                    [_context(variant, histories[row], num_past) for row in rows], dim=0
                )
                with window(model, context.shape[2]):
                    chunk = model(
                        context,
                        instruction=[trials[row].instruction for row in rows],
                        num_frames=model.config.num_future_frames,
                        num_inference_steps=num_inference_steps,
                        guidance_scale=guidance_scale,
                        generator=generators,
                        output_type="latent",
                    ).latents
                chunks.append(chunk)
                for row, latents in zip(own, chunk.split(1), strict=False):
                    histories[row] = torch.cat([histories[row], latents.to(histories[row])], dim=2)
            videos = model.decode(torch.cat(chunks, dim=2))
            frames.update(zip(own, videos, strict=False))
            progress.update(len(own))
    return np.stack([frames[row] for row in range(len(trials))])


def _context(variant: Variant, history: Tensor, num_past: int) -> Tensor:
    """Of all latents so far ``(1, channels, T, h, w)`` those that a chunk is imagined from."""
    length = history.shape[2]
    begins = torch.zeros(1, dtype=torch.long)
    rows = variant.context(begins, begins + length - 1, num_past, length)
    return history[:, :, rows[0]]


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Rows that share the length of their context."""
    for length in sorted(set(lengths)):
        rows = [row for row, found in enumerate(lengths) if found == length]
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


@contextmanager
def window(model: VideoWorldModel, num_past: int) -> Iterator[None]:
    """Let the model take a context of ``num_past`` frames, whatever it was trained on."""
    usual = model.config.num_past_frames
    model.register_to_config(num_past_frames=num_past)
    try:
        yield
    finally:
        model.register_to_config(num_past_frames=usual)
