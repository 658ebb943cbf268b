"""The memories that are compared: what each of them lets the model see of an episode's past."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sfvgen_planner.errors import require
from sfvgen_planner.evaluation.return_trials import ReturnTrial
from sfvgen_planner.memory import EpisodicMemory
from sfvgen_planner.world_model import VideoWorldModel

State = dict[str, Tensor]
Context = Callable[[Tensor, int], Tensor]


def recent_frames(history: Tensor, num_past: int) -> Tensor:
    """The last f_p frames, as everywhere else."""
    return history[:, :, -num_past:]


def anchored_frames(history: Tensor, num_past: int) -> Tensor:
    """The episode's first frame and the last f_p - 1 (StreamingT2V's idea, arXiv 2403.14773)."""
    if history.shape[2] <= num_past:
        return history
    return torch.cat([history[:, :, :1], history[:, :, 1 - num_past :]], dim=2)


def all_frames(history: Tensor, num_past: int) -> Tensor:
    """Everything since the episode began: the upper bound that does not ask for the cost."""
    return history


@dataclass(frozen=True)
class Variant:
    """What the model is given of an episode's past.

    Attributes:
        memory: makes the fast weights of a model; None for none.
        of_other_episode: give it the memory of another trial instead of the trial's own, a
            control: what helps then is not remembering.
        context: from all latents so far ``(batch, channels, T, h, w)`` and f_p to those that the
            next chunk is imagined from.
    """

    memory: Callable[[VideoWorldModel], EpisodicMemory] | None = None
    of_other_episode: bool = False
    context: Context = recent_frames


VARIANTS: dict[str, Variant] = {
    "none": Variant(),
    "temp_lora": Variant(memory=EpisodicMemory),
    "other_episode": Variant(memory=EpisodicMemory, of_other_episode=True),
    "anchor_frame": Variant(context=anchored_frames),
    "long_context": Variant(context=all_frames),
}
"""Name to variant. ``none`` is what the others are compared with."""
REFERENCE = "none"


@contextmanager
def attached(variant: Variant, model: VideoWorldModel) -> Iterator[EpisodicMemory | None]:
    """The variant's memory in the model for as long as the context lasts."""
    memory = None if variant.memory is None else variant.memory(model)
    try:
        yield memory
    finally:
        if memory is not None:
            memory.detach()


def learn(memory: EpisodicMemory, past: np.ndarray) -> State:
    """Fast-learn the true frames ``(T + 1, H, W, 3)`` of an episode, as the wrapper does.

    The frame of the reset opens the episode, then every ``num_future_frames`` make a chunk; what
    is left at the end is no chunk yet.
    """
    config = memory.world_model.config
    latents = memory.world_model.encode(past[None])[0]
    memory.reset()
    for end in range(config.num_future_frames, len(past), config.num_future_frames):
        chunk = latents[:, end + 1 - config.num_future_frames : end + 1]
        before = latents[:, : end + 1 - config.num_future_frames]
        memory.write(before[:, -config.num_past_frames :], chunk)
    return memory.state()


class TrialMemories:
    """The memory of each trial at the request, learnt when it is first asked for, and kept."""

    def __init__(self, trials: Sequence[ReturnTrial]) -> None:
        self._trials = trials
        self._states: dict[tuple[object, int], State] = {}

    def states(self, variant: Variant, memory: EpisodicMemory, description: str) -> list[State]:
        """One state per trial: its own memory's, or that of the trial before it.

        Raises:
            SfvgenError: another trial's is asked for, but there is only one.
        """
        require(
            not variant.of_other_episode or len(self._trials) > 1,
            "the memory of another episode needs at least 2 episodes, got 1",
        )
        rows = tqdm(range(len(self._trials)), desc=description, unit="episode", dynamic_ncols=True)
        own = [self._state(variant, memory, row) for row in rows]
        return own[-1:] + own[:-1] if variant.of_other_episode else own

    def _state(self, variant: Variant, memory: EpisodicMemory, row: int) -> State:
        key = (variant.memory, row)
        if key not in self._states:
            self._states[key] = learn(memory, self._trials[row].past)
        return self._states[key]


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
        memory: the variant's memory, in the model.
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
    num_past = model.config.num_past_frames
    histories = [model.encode(trial.past[None]) for trial in trials]
    lengths = [variant.context(history, num_past).shape[2] for history in histories]
    frames: dict[int, np.ndarray] = {}
    with tqdm(total=len(trials), desc=description, unit="episode", dynamic_ncols=True) as progress:
        for rows in _batches(lengths, 1 if memory is not None else batch_size):
            if memory is not None:
                assert states is not None
                memory.load(states[rows[0]])
            generators = [torch.Generator().manual_seed(trials[row].seed) for row in rows]
            chunks: list[Tensor] = []
            for _ in range(num_chunks):
                context = torch.cat(
                    [variant.context(histories[row], num_past) for row in rows], dim=0
                )
                with _window(model, context.shape[2]):
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
                for row, latents in zip(rows, chunk.split(1), strict=True):
                    histories[row] = torch.cat([histories[row], latents.to(histories[row])], dim=2)
            videos = model.decode(torch.cat(chunks, dim=2))
            frames.update(zip(rows, videos, strict=True))
            progress.update(len(rows))
    return np.stack([frames[row] for row in range(len(trials))])


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Rows that share the length of their context."""
    for length in sorted(set(lengths)):
        rows = [row for row, found in enumerate(lengths) if found == length]
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


@contextmanager
def _window(model: VideoWorldModel, num_past: int) -> Iterator[None]:
    """Let the model take a context of ``num_past`` frames, whatever it was trained on."""
    usual = model.config.num_past_frames
    model.register_to_config(num_past_frames=num_past)
    try:
        yield
    finally:
        model.register_to_config(num_past_frames=usual)
