"""Batches of stored memories: the paper's loop (Algorithm 1b)."""

import numpy as np
import torch
from torch import Tensor

from sfvgen_planner.memory.loop_recipe import LoopStage
from sfvgen_planner.memory.slow_fast import LoopBatch, LoopBatches, SlowFastObjective, Stored
from sfvgen_planner.world_model.trainer import shared_seed


class StoredBatches:
    """Draws batches of stored memories, in rounds: the paper's loop.

    As a round begins, memories are written with the slow weights of that moment; the round's steps
    train the slow weights on them as they are (Algorithm 1b). A `StatefulDraw`: a resumed run goes
    on with the round.

    Args:
        batches: Draws what is written and judged.
        objective: Writes the memories.
        stage: Size and length of a round.
    """

    def __init__(
        self, batches: LoopBatches, objective: SlowFastObjective, stage: LoopStage
    ) -> None:
        self._batches = batches
        self._objective = objective
        self._stage = stage
        self._stored: list[tuple[Stored, Tensor, Tensor]] = []
        self._steps_left = 0

    def __call__(self, generator: torch.Generator) -> LoopBatch:
        """One step's batch."""
        host = np.random.default_rng(shared_seed(generator))
        if not self._steps_left:
            horizons = host.choice(self._batches.horizons, self._stage.stored_batches)
            self._stored = [self._write(int(number), generator) for number in horizons]
            self._steps_left = self._stage.steps_per_round
        self._steps_left -= 1
        stored, first, mix = self._stored[int(host.integers(len(self._stored)))]
        judged = self._batches.judged(first, mix, generator)
        return LoopBatch(stored, judged, self._batches.slow(generator))

    def state(self) -> dict[str, Tensor]:
        """The stored memories, what they are judged by, and the steps left of the round.

        Returns:
            `steps_left ()` and, for each batch i, `i/num_chunks ()`, `i/first (memories,)`,
            `i/mix (memories,)` and the fast weights, `i/fast/<name> (memories, ...)`.
        """
        state = {"steps_left": torch.tensor(self._steps_left)}
        for index, (stored, first, mix) in enumerate(self._stored):
            state |= {
                f"{index}/num_chunks": torch.tensor(stored.num_chunks),
                f"{index}/first": first,
                f"{index}/mix": mix,
                **{f"{index}/fast/{name}": value for name, value in stored.fast.items()},
            }
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on with the round that `state` was taken in.

        Raises:
            KeyError: It has fewer stored batches.
        """
        stored = []
        for index in range(self._stage.stored_batches):
            parts = _below(state, f"{index}/")
            on_device = {name: value.to(self._batches.device) for name, value in parts.items()}
            memories = Stored(_below(on_device, "fast/"), int(parts["num_chunks"]))
            stored.append((memories, on_device["first"], on_device["mix"]))
        self._stored, self._steps_left = stored, int(state["steps_left"])

    @torch.no_grad()
    def _write(self, num_chunks: int, generator: torch.Generator) -> tuple[Stored, Tensor, Tensor]:
        first, mix = self._batches.choose(num_chunks, generator)
        fast = self._objective.write(self._batches.writes(first, num_chunks, generator))
        return Stored(fast, num_chunks), first, mix


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
