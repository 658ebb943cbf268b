"""Fast learning of chunks as they happen: by a CUDA graph where it pays, and measured."""

import torch
from torch import Tensor

from sfvgen_planner.memory.adapter import Adapters, FastWeights
from sfvgen_planner.memory.config import MemoryConfig
from sfvgen_planner.memory.fast_learning import FastLearner
from sfvgen_planner.world_model import VideoWorldModel
from sfvgen_planner.world_model.cuda_graphs import MAX_GRAPHS, CapturedFunction, module_state
from sfvgen_planner.world_model.kernels import trainable_attention
from sfvgen_planner.world_model.slow_learning import SlowBatch, SlowObjective


class MeasuredLearner:
    """Takes the steps of a write (Eq. 3) and tells what they did.

    Args:
        world_model: The model that the memories belong to.
        adapters: Its adapters.
        config: The memories' rule.
    """

    def __init__(
        self, world_model: VideoWorldModel, adapters: Adapters, config: MemoryConfig
    ) -> None:
        self._world_model = world_model
        self._adapters = adapters
        self._config = config
        self._learner = FastLearner(SlowObjective(world_model), adapters, config)
        self._captured: CapturedFunction[tuple[FastWeights, Tensor]] | None = None

    def learn(
        self,
        before: FastWeights,
        written: Tensor,
        batches: list[SlowBatch],
        probe: SlowBatch | None = None,
    ) -> tuple[FastWeights, Tensor]:
        """One write, from the slow model: no memory may be in place.

        Args:
            before: The memories before; tensors `(memories, ...)`.
            written: `(memories,)`, how many chunks each has written before.
            batches: One per step, of as many samples for each memory, in order.
            probe: What is learnt, with the first step's noise, to measure the losses of; they take
                two further calls of the denoiser. None measures nothing.

        Returns:
            The memories after it, to be copied before the model is called again, and the losses
            `(memories, 3)` without memory, with that before and with that after; NaN where nothing
            is measured.
        """
        _, height, width = self._world_model.latent_size
        with trainable_attention(self._world_model.unet, height * width):
            learnt, losses = self._steps(before, written, batches)
            columns = [losses.new_full(losses.shape, torch.nan)] * 3
            if probe is not None:
                with torch.no_grad():
                    columns[0] = self._learner.losses(probe, len(written))
                    columns[1] = losses
                    # The first step may have learnt another chunk than this one.
                    if self._config.whole_history:
                        with self._adapters.placed(before, written):
                            columns[1] = self._learner.losses(probe, len(written))
                    with self._adapters.placed(learnt, written):
                        columns[2] = self._learner.losses(probe, len(written))
        return learnt, torch.stack(columns, dim=1)

    @property
    def has_graphs(self) -> bool:
        """Whether writes are launched as CUDA graphs."""
        return self._captured is not None

    def release(self) -> None:
        """Give back the CUDA graphs; they are made anew when needed."""
        self._captured = None

    def _steps(
        self, before: FastWeights, written: Tensor, batches: list[SlowBatch]
    ) -> tuple[FastWeights, Tensor]:
        unet, pool = self._world_model.unet, self._world_model.graph_pool
        # Dropout draws random numbers.
        if pool is None or unet.training:
            return self._learner.learn(before, written, batches)
        if self._captured is None or self._captured.pool is not pool:
            self._captured = CapturedFunction(self._learner.learn, pool, MAX_GRAPHS)
        state = (module_state(unet), module_state(self._world_model.text_encoder))
        with torch.cuda.device(unet.device):
            return self._captured(before, written, batches, state=state)
