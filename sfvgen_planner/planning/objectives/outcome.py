"""What the outcome head expects of an instruction: its success and its reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.imagination import Imagination

if TYPE_CHECKING:
    from sfvgen_planner.world_model.outcome_head import OutcomeHead


class _OutcomeObjective(ABC):
    """Asks an outcome head about an instruction."""

    def __init__(self, outcome_head: OutcomeHead, instruction: str) -> None:
        if not isinstance(instruction, str) or not instruction:
            raise SfvgenError(
                f"{type(self).__name__}: the goal must be an instruction, a str of words, "
                f"got {instruction!r}"
            )
        require(
            outcome_head is not None,
            f"{type(self).__name__} needs an outcome head, and this model has none; train one with "
            "outcome_head in the recipe",
        )
        self.outcome_head = outcome_head
        self.instruction = instruction

    def __call__(self, imagination: Imagination) -> torch.Tensor:
        """Cost of each future."""
        device = imagination.latents.device
        token_ids = self.outcome_head.tokenize(imagination.world_model, [self.instruction])
        with torch.set_grad_enabled(imagination.latents.requires_grad):
            return self._cost(imagination, self.outcome_head.to(device), token_ids.to(device))

    @abstractmethod
    def _cost(
        self, imagination: Imagination, head: OutcomeHead, token_ids: torch.Tensor
    ) -> torch.Tensor:
        """Costs ``(N,)``; ``token_ids`` ``(1, tokens)`` are the instruction's."""


class TaskReward(_OutcomeObjective):
    """The rewards that the environment would give for an instruction, summed and negated.

    In the environment's units.

    Args:
        outcome_head: tells the reward of each imagined step; moved to the futures' device.
        instruction: what the robot is told.

    Raises:
        SfvgenError: where the instruction is empty.

    Example:
        >>> from functools import partial
        >>> from sfvgen_planner.planning import MPCPlanner
        >>> from sfvgen_planner.world_model import checkpoint_folder
        >>> from sfvgen_planner.world_model.heads import load_heads
        >>> head = load_heads(checkpoint_folder("tabletop")).outcome_head
        >>> planner = MPCPlanner(objective=partial(TaskReward, head))
    """

    def _cost(
        self, imagination: Imagination, head: OutcomeHead, token_ids: torch.Tensor
    ) -> torch.Tensor:
        after = imagination.latents.transpose(1, 2).float()
        present = imagination.present_latents.float().expand_as(after[:, :1])
        before = torch.cat([present, after[:, :-1]], dim=1)
        num_steps = after.shape[0] * after.shape[1]
        token_ids = token_ids.expand(num_steps, -1)
        _, rewards = head(before.flatten(0, 1), after.flatten(0, 1), token_ids)
        return -rewards.float().view(after.shape[:2]).sum(dim=1)


class LearnedSuccess(_OutcomeObjective):
    """How surprising it would be if the last imagined frame showed the instruction achieved.

    That is ``-log p`` of the head's calibrated probability: 0 where it is sure of success, and
    still falling where success is far, unlike the probability itself.

    Args:
        outcome_head: tells the probability; moved to the futures' device.
        instruction: what the robot is told.

    Raises:
        SfvgenError: where the instruction is empty.
    """

    def _cost(
        self, imagination: Imagination, head: OutcomeHead, token_ids: torch.Tensor
    ) -> torch.Tensor:
        last = imagination.last_latents.float()
        log_odds = head.success_logits(last, token_ids.expand(len(last), -1))
        return torch.nn.functional.softplus(-log_odds.float())
