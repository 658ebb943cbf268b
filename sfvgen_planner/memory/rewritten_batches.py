"""Batches of fresh memories, of which some writes are taken again with gradients."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from sfvgen_planner.memory.adapter import FastWeights
from sfvgen_planner.memory.slow_fast import (
    LoopBatch,
    LoopBatches,
    Rewritten,
    SlowFastObjective,
    Writes,
)
from sfvgen_planner.world_model.cuda_graphs import CapturedFunction


class RewrittenBatches:
    """Writes memories anew in each step, one chunk after the other and without a graph.

    Gradients then flow through a few of the writes, side by side: a step's time and memory hardly
    grow with the horizon, and all horizons share one CUDA graph.

    Args:
        batches: Draws what is written and judged.
        objective: Writes the memories.
        num_rewrites: Writes with gradients in a step; all where a memory has no more.
        autocast: Makes the context that the memories are written in.
        capture: Write by a CUDA graph.
    """

    def __init__(
        self,
        batches: LoopBatches,
        objective: SlowFastObjective,
        num_rewrites: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        capture: bool = False,
    ) -> None:
        self._batches = batches
        self._objective = objective
        self._num_rewrites = num_rewrites
        self._autocast = autocast
        learn = objective.learner.learn
        self._learn = CapturedFunction(learn) if capture else learn

    def __call__(self, generator: torch.Generator) -> LoopBatch:
        """One step's batch."""
        num_chunks = self._batches.draw_horizon(generator)
        writes, judged = self._batches.draw(num_chunks, generator)
        order = torch.randperm(num_chunks, generator=generator, device=generator.device)
        rewritten = self._written(writes, order[: self._num_rewrites])
        return LoopBatch(rewritten, judged, self._batches.slow(generator))

    @torch.no_grad()
    def _written(self, writes: Writes, chosen: Tensor) -> Rewritten:
        """The memories after all chunks, and the `chosen` writes `(rewrites,)` to take again."""
        num_chunks, num_memories = writes.windows.shape[:2]
        fast = self._objective.adapters.start(num_memories)
        states: list[FastWeights] = []
        with self._autocast():
            for chunks, batches in self._objective.chunks(writes):
                states.append(fast)
                learnt, _ = self._learn(fast, chunks, batches)
                # A graph's outputs are its own.
                fast = {name: value.clone() for name, value in learnt.items()}
        return Rewritten(
            fast=fast,
            num_chunks=torch.full((num_memories,), num_chunks, device=chosen.device),
            again=writes._replace(
                windows=writes.windows[chosen].flatten(0, 1)[None],
                noise=writes.noise[chosen].transpose(0, 1).flatten(1, 2)[None],
                timesteps=writes.timesteps[chosen].transpose(0, 1).flatten(1, 2)[None],
            ),
            before={
                name: torch.stack([state[name] for state in states])[chosen].flatten(0, 1)
                for name in fast
            },
            chunks=chosen.repeat_interleave(num_memories),
            scale=torch.tensor(num_chunks / len(chosen), device=chosen.device),
        )
