"""Held-out metrics of slow learning: how well episodes that training never sees are imagined."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.metrics_log import Metrics
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.recipe import WorldModelRecipe
from sfvgen_planner.world_model.slow_learning import SlowObjective, slow_batches, told_starts

NUM_BATCHES = 4


def held_out_metrics(
    table: FrameTable, model: VideoWorldModel, recipe: WorldModelRecipe
) -> Callable[[int], Metrics]:
    """A function that measures `model`, each time on the same windows with the same noise.

    It returns `held_out_loss`, the training loss on `NUM_BATCHES` batches, and two images of real
    frames above imagined ones, context first: `imagined_with_actions` and, where the episodes
    have instructions, `imagined_from_language`.

    Args:
        table: Frames of the held-out episodes, in pixels.
        model: Its autoencoder must be trained already.
        recipe: Windows, conditions and batch size.

    Raises:
        SfvgenError: No held-out episode is as long as a training window.
    """
    num_past, num_future = recipe.num_past_frames, recipe.num_future_frames
    encoded = table.encoded(model)
    draw = slow_batches(encoded, model, recipe)
    objective = SlowObjective(model)
    device = table.frames.device
    window = torch.arange(num_past + num_future, device=device)

    def strip(rows: Tensor, **conditions: Any) -> NDArray[np.uint8]:
        past = encoded.frames[rows[:num_past]].float().transpose(0, 1)[None]
        generator = torch.Generator().manual_seed(0)
        imagined = model(past, num_frames=num_future, generator=generator, **conditions).frames
        assert imagined is not None
        real = table.frames[rows].cpu().numpy()
        shown = np.concatenate([real[:num_past], imagined[0]])
        return np.concatenate([np.concatenate([*frames], axis=1) for frames in (real, shown)])

    def with_actions() -> NDArray[np.uint8]:
        rows = _middle(table.window_starts(len(window))) + window
        low = torch.tensor(model.config.action_low, device=device)
        high = torch.tensor(model.config.action_high, device=device)
        actions = low + (table.actions[rows[num_past - 1 : -1]] + 1) / 2 * (high - low)
        return strip(rows, actions=actions.clamp(low, high)[None])

    def from_language(starts: Tensor) -> NDArray[np.uint8]:
        start = _middle(starts)
        leading = start + num_past - 1
        # As in training, the real video stands still once the instruction is over.
        rows = torch.minimum(start + window, table.instruction_ends()[leading])
        return strip(rows, instruction=table.instructions[int(table.instruction_ids[leading])])

    @torch.no_grad()
    def evaluate(step: int) -> Metrics:
        metrics: dict[str, float | NDArray[np.uint8]] = {}
        # A denoiser compiled for training would be compiled again for these shapes.
        with torch.compiler.set_stance("force_eager"):
            generators = [torch.Generator(device).manual_seed(n) for n in range(NUM_BATCHES)]
            losses = [objective(*draw(generator)) for generator in generators]
            metrics["held_out_loss"] = torch.stack(losses).mean().item()
            metrics["imagined_with_actions"] = with_actions()
            starts = told_starts(table, num_past)
            if len(starts):
                metrics["imagined_from_language"] = from_language(starts)
        return metrics

    return evaluate


def _middle(starts: Tensor) -> Tensor:
    return starts[len(starts) // 2]
