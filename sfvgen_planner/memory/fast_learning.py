"""Fast learning: how memories change as they write a chunk (paper section 3.2, Eq. 3)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sfvgen_planner.memory.adapter import Adapters, FastWeights
from sfvgen_planner.memory.config import MemoryConfig
from sfvgen_planner.world_model.slow_learning import SlowBatch, SlowObjective

_ADAM_BETAS = (0.9, 0.999)
_ADAM_EPSILON = 1e-8
# Far below any gradient; only keeps a gradient of zeros from becoming NaN.
_TINY = 1e-20


class FastLearner:
    """Takes the steps of the memories' rule.

    Args:
        objective: The denoising loss of the model.
        adapters: The model's adapters.
        config: The rule.
    """

    def __init__(self, objective: SlowObjective, adapters: Adapters, config: MemoryConfig) -> None:
        self._objective = objective
        self._adapters = adapters
        self._config = config

    def losses(self, batch: SlowBatch, num_memories: int) -> Tensor:
        """Each memory's mean denoising loss, `(memories,)`, of its share of the batch."""
        errors, counted = self._objective.errors(batch)
        return (errors / counted).unflatten(0, (num_memories, -1)).mean(dim=1)

    def learn(
        self,
        fast: FastWeights,
        chunks: Tensor,
        batches: Sequence[SlowBatch],
        second_order: bool = False,
    ) -> tuple[FastWeights, Tensor]:
        """One write: a step of the rule on each batch.

        Args:
            fast: The memories before; tensors `(memories, ...)`.
            chunks: `(memories,)`, how many chunks each has written before this one.
            batches: One per step, of as many samples for each memory, in order.
            second_order: Let gradients flow through the steps, for the slow weights to learn how
                to be learnt with. Without, they flow only from `fast` before to `fast` after.

        Returns:
            The memories after it, and their losses `(memories,)` before it.
        """
        if second_order:
            return _Recomputed.learn(self, fast, chunks, batches)
        return self.steps(fast, chunks, batches, create_graph=False)

    def steps(
        self, fast: FastWeights, chunks: Tensor, batches: Sequence[SlowBatch], create_graph: bool
    ) -> tuple[FastWeights, Tensor]:
        """What `learn` does; `create_graph` keeps the graph that gradients flow through."""
        rule = _Adam() if self._config.rule == "adam" else _normalised
        all_losses = []
        for batch in batches:
            gradients, losses = self._gradients(fast, chunks, batch, create_graph)
            steps = rule(gradients)
            fast = {
                # Popped, so that a step goes as soon as it is taken: memories can be large.
                name: value - self._config.learning_rate * steps.pop(name)
                for name, value in fast.items()
            }
            all_losses.append(losses.detach())
        return fast, all_losses[0]

    def _gradients(
        self, fast: FastWeights, chunks: Tensor, batch: SlowBatch, create_graph: bool
    ) -> tuple[FastWeights, Tensor]:
        """The gradient of each memory's own loss; one backward pass serves all of them."""
        if create_graph:
            # A compiled denoiser can't be differentiated twice.
            context: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
        else:
            fast = {name: value.detach().requires_grad_() for name, value in fast.items()}
            context = _frozen(self._objective)
        with torch.enable_grad(), context, self._adapters.placed(fast, chunks):
            losses = self.losses(batch, len(chunks))
            # Still in place: gradient checkpointing computes the layers anew.
            gradients = torch.autograd.grad(
                losses.sum(), list(fast.values()), create_graph=create_graph
            )
        return dict(zip(fast, gradients, strict=True)), losses


class _Recomputed(torch.autograd.Function):
    """A write through which gradients flow, computed anew in backward.

    The graph of a write that can be differentiated is several times that of an ordinary loss; so
    only one of an episode's writes has it at a time.
    """

    @classmethod
    def learn(
        cls,
        learner: FastLearner,
        fast: FastWeights,
        chunks: Tensor,
        batches: Sequence[SlowBatch],
    ) -> tuple[FastWeights, Tensor]:
        """`FastLearner.learn`, with gradients to `fast` and to the slow weights."""
        # Given as arguments, so that their gradients come through autograd's usual ways.
        slow = [p for p in learner._objective.parameters() if p.requires_grad]
        losses, *learnt = cls.apply(
            learner, list(fast), chunks, batches, slow, *fast.values(), *slow
        )
        return dict(zip(fast, learnt, strict=True)), losses

    @staticmethod
    def forward(
        ctx: Any,
        learner: FastLearner,
        names: list[str],
        chunks: Tensor,
        batches: Sequence[SlowBatch],
        slow: list[nn.Parameter],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.given = (learner, names, chunks, batches, slow)
        ctx.save_for_backward(*tensors[: len(names)])
        kind = chunks.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        fast = dict(zip(names, tensors[: len(names)], strict=True))
        learnt, losses = learner.steps(fast, chunks, batches, create_graph=False)
        ctx.mark_non_differentiable(losses)
        return losses, *learnt.values()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        learner, names, chunks, batches, slow = ctx.given
        kind, dtype, enabled = ctx.autocast
        with torch.enable_grad(), torch.autocast(kind, dtype, enabled):
            leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            fast = dict(zip(names, leaves, strict=True))
            learnt, _ = learner.steps(fast, chunks, batches, create_graph=True)
        gradients = torch.autograd.grad(
            list(learnt.values()), [*leaves, *slow], slopes[1:], allow_unused=True
        )
        return (None, None, None, None, None, *gradients)


def _normalised(gradients: FastWeights) -> FastWeights:
    """`g / rms(g)`, for each memory and tensor by itself; `gradients` is emptied on the way."""
    steps = {}
    for name in list(gradients):
        gradient = gradients.pop(name)
        square = gradient.square().mean(dim=tuple(range(1, gradient.dim())), keepdim=True)
        steps[name] = gradient * (square + _TINY).rsqrt()
    return steps


class _Adam:
    """Adam's steps from fresh moments (Kingma and Ba, 2015), which gradients can flow through."""

    def __init__(self) -> None:
        self._count = 0
        self._means: FastWeights = {}
        self._squares: FastWeights = {}

    def __call__(self, gradients: FastWeights) -> FastWeights:
        self._count += 1
        (beta1, beta2), steps = _ADAM_BETAS, {}
        for name, gradient in gradients.items():
            mean = (1 - beta1) * gradient + beta1 * self._means.get(name, 0)
            square = (1 - beta2) * gradient.square() + beta2 * self._squares.get(name, 0)
            self._means[name], self._squares[name] = mean, square
            root = (square / (1 - beta2**self._count)).sqrt()
            steps[name] = mean / (1 - beta1**self._count) / (root + _ADAM_EPSILON)
        return steps


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Gradients of the slow weights are not even prepared: half of the work of a write."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
