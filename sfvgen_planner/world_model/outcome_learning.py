"""Training of the outcome head on what the simulator said of each step."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.latent_noise import with_latent_noise
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.recipe import OutcomeHeadRecipe

_ROWS_AT_ONCE = 512


class OutcomeBatch(NamedTuple):
    """Steps, half of which end in success.

    Attributes:
        before: Latents `(batch, channels, h, w)` of the frames before.
        after: Of the frames after.
        token_ids: `(batch, tokens)` of the instructions in force.
        successes: `(batch,)`, 1 where the frame after shows the instruction achieved, else 0.
        rewards: `(batch,)`, in the environment's units.
        weights: `(batch,)`, how much more often such steps are in the data than in the batch.
    """

    before: Tensor
    after: Tensor
    token_ids: Tensor
    successes: Tensor
    rewards: Tensor
    weights: Tensor


class OutcomeObjective(nn.Module):
    """Binary cross-entropy of the success, and squared error of the reward.

    The squared error is in units of the head's `reward_scale` and weighted back to the frequency of
    the steps in the data, so that the mean reward is learned, not that of the balanced batch.
    """

    def __init__(self, head: OutcomeHead) -> None:
        super().__init__()
        self.head = head
        self._reward_scale: float = head.config.reward_scale

    def forward(self, *fields: Tensor) -> Tensor:
        """Loss; `fields` are those of `OutcomeBatch`."""
        batch = OutcomeBatch(*fields)
        logits, rewards = self.head(batch.before, batch.after, batch.token_ids)
        error = (rewards.float() - batch.rewards) / self._reward_scale
        surprise = nn.functional.binary_cross_entropy_with_logits(logits.float(), batch.successes)
        return surprise + (batch.weights * error.square()).mean()


def outcome_batches(
    table: FrameTable, model: VideoWorldModel, recipe: OutcomeHeadRecipe
) -> Callable[[torch.Generator], OutcomeBatch]:
    """Steps of an encoded table, half with success, with a little noise on the latents.

    All labels are the simulator's. No instruction is swapped for another one, because that might
    be true as well; frames that achieved one instruction are negatives of the next one anyway.

    Raises:
        SfvgenError: See `check_outcomes`.
    """
    check_outcomes(table)
    device = table.frames.device
    tokens = model.tokenize(table.instructions).to(device)
    rows = told_steps(table)
    achieved = table.successes[rows] > 0
    kinds = rows[~achieved], rows[achieved]
    share = torch.tensor([len(kind) / len(rows) for kind in kinds], device=device)
    batch_size = recipe.optimisation.batch_size

    def draw(generator: torch.Generator) -> OutcomeBatch:
        def uniform() -> Tensor:
            return torch.rand(batch_size, generator=generator, device=device)

        wanted = (uniform() < 0.5).long()
        place = uniform()
        failed, succeeded = (
            kind[(place * len(kind)).long().clamp(max=len(kind) - 1)] for kind in kinds
        )
        picked = torch.where(wanted > 0, succeeded, failed)
        # To single precision first: autocast to bfloat16 refuses to stack float16.
        clean = torch.stack([table.frames[row].float() for row in (picked, picked + 1)])
        before, after = with_latent_noise(clean, recipe.latent_noise, generator)
        return OutcomeBatch(
            before=before,
            after=after,
            token_ids=tokens[table.instruction_ids[picked]],
            successes=wanted.float(),
            rewards=table.rewards[picked],
            weights=2 * share[wanted],
        )

    return draw


def check_outcomes(table: FrameTable) -> None:
    """Refuse data that an outcome head can't learn from.

    Raises:
        SfvgenError: The data does not tell of both successes and failures.
    """
    if len(table.successes[told_steps(table)].unique()) < 2:
        raise SfvgenError(
            "an outcome head needs episodes whose environment tells in info['success'] when an "
            "instruction is achieved, with successes and failures among them; collect such into a "
            "new folder, or leave `outcome_head:` out of the recipe"
        )


def told_steps(table: FrameTable) -> Tensor:
    """Rows `(M,)` of the steps that had an instruction and of whose success the data tells."""
    return torch.nonzero((table.instruction_ids > 0) & (table.successes >= 0)).flatten()


@torch.no_grad()
def calibrate(head: OutcomeHead, table: FrameTable, model: VideoWorldModel) -> None:
    """Fit the head's temperature and bias to the successes of an encoded, held-out table.

    Platt scaling by maximum likelihood, with Platt's own targets, which keep it finite where the
    head makes no mistake (Platt, 1999, section 2.2). Where the table has no successes or no
    failures, there is nothing to fit and the head stays as it is.
    """
    rows = told_steps(table)
    successes = table.successes[rows] > 0
    num_true = int(successes.sum())
    num_false = len(rows) - num_true
    if not num_true or not num_false:
        return
    head.register_to_config(temperature=1.0, bias=0.0)
    tokens = model.tokenize(table.instructions).to(rows.device)
    logits = torch.cat(
        [
            head.success_logits(table.frames[part + 1].float(), tokens[table.instruction_ids[part]])
            for part in rows.split(_ROWS_AT_ONCE)
        ]
    )
    targets = torch.where(successes, (num_true + 1) / (num_true + 2), 1 / (num_false + 2))
    scale, bias = fit_platt(logits, targets)
    head.register_to_config(temperature=1 / scale, bias=bias)


def fit_platt(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """The scale and bias of logits `(N,)` under which targets `(N,)` in (0, 1) are likeliest.

    Returns:
        a > 0 and b of the probability sigmoid(a * logit + b).
    """
    inputs, wanted = logits.double().cpu(), targets.double().cpu()
    # The logarithm of the scale is searched: a head that ranks backwards is not turned around.
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        with torch.enable_grad():
            value = nn.functional.binary_cross_entropy_with_logits(
                parameters[0].exp() * inputs + parameters[1], wanted
            )
            value.backward()
        return value

    optimiser.step(loss)
    log_scale, bias = parameters.detach()
    return float(log_scale.exp()), float(bias)
