"""Slow learning: masked conditional video diffusion on many episodes (paper section 3.1)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.objective import add_noise, draw_timesteps, is_flow, target
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.recipe import Conditions, Prediction, WorldModelRecipe

# Mixes of conditions, numbered in the order of `_mixes`.
LANGUAGE, ACTIONS, _BOTH, _NONE, _WHOLE_SEQUENCE = range(5)


class SlowBatch(NamedTuple):
    """One training batch of windows of f_p past and f_g future frames.

    Attributes:
        latents: `(batch, channels, frames, h, w)`, clean.
        num_past: f_p.
        actions: `(batch, f_g, A)` in [-1, 1].
        token_ids: `(batch, tokens)`; those of "" where language is dropped.
        actions_given: `(batch,)`, 0 where the actions are dropped.
        context_given: `(batch,)`, 0 where the whole window is noised.
        noise: As `latents`.
        context_noise: As `latents`, already scaled; added to the context frames.
        timesteps: `(batch,)`.
    """

    latents: Tensor
    num_past: int
    actions: Tensor
    token_ids: Tensor
    actions_given: Tensor
    context_given: Tensor
    noise: Tensor
    context_noise: Tensor
    timesteps: Tensor


class SlowObjective(nn.Module):
    """Eq. 1-2: denoise the f_g future frames beside clean past frames; the loss counts only them.

    Samples without context (`context_given` 0) denoise the whole window, as fast learning will.
    """

    def __init__(self, model: VideoWorldModel) -> None:
        super().__init__()
        self.unet = model.unet
        self.text_encoder = model.text_encoder
        self.action_size = model.action_size
        self._denoise = model.denoise
        self._scheduler = model.scheduler

    def forward(self, *fields: Tensor) -> Tensor:
        """Mean squared error of the prediction; `fields` are those of `SlowBatch`."""
        return mean_error(self.errors(SlowBatch(*fields)))  # type: ignore[arg-type]

    def errors(self, batch: SlowBatch, change_weight: float = 0.0) -> tuple[Tensor, Tensor]:
        """Each sample's summed squared error, `(batch,)`, and the numbers that it counts.

        Args:
            batch: The samples.
            change_weight: How much more those cells of the latents count that change after the last
                past frame: `1 + change_weight * c / mean(c)`, divided by its mean over the sample,
                with a cell's squared change c.
        """
        noised = add_noise(self._scheduler, batch.latents, batch.noise, batch.timesteps)
        num_frames = batch.latents.shape[2]
        is_past = torch.arange(num_frames, device=noised.device) < batch.num_past
        clean = (is_past[None] & (batch.context_given[:, None] > 0))[:, None, :, None, None]
        window = torch.where(clean, batch.latents + batch.context_noise, noised)
        text_states = self.text_encoder(batch.token_ids).last_hidden_state
        prediction = self._denoise(
            window,
            batch.timesteps,
            batch.num_past,
            text_states,
            batch.actions,
            batch.actions_given,
            batch.context_given,
        )
        wanted = target(self._scheduler, batch.latents, batch.noise, batch.timesteps)
        error = (prediction.float() - wanted).square() * ~clean
        if change_weight:
            error = error * _change_weights(batch, change_weight)
        return error.flatten(1).sum(dim=1), (~clean).expand_as(error).flatten(1).sum(dim=1)


def _change_weights(batch: SlowBatch, change_weight: float) -> Tensor:
    """`(batch, 1, frames, h, w)`, of mean 1 over the future frames."""
    present = batch.latents[:, :, batch.num_past - 1, None]
    change = (batch.latents - present).square().mean(dim=1, keepdim=True)
    mean = change[:, :, batch.num_past :].mean(dim=(2, 3, 4), keepdim=True)
    # Where nothing changes, all cells count alike.
    relative = torch.where(mean > 0, change / mean, 1.0)
    return (1 + change_weight * relative) / (1 + change_weight)


def mean_error(*parts: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error over all that `SlowObjective.errors` gave for one or several batches."""
    errors, counted = zip(*parts, strict=True)
    return torch.cat(errors).sum() / torch.cat(counted).sum()


class SlowWindows:
    """Makes training batches of windows of an encoded table.

    A language sample shows its instruction being followed to the end; from then on it stands
    still, so that the video of an instruction is whole wherever in it the window begins. Together
    with actions, language is used only where one instruction holds over all future frames.
    """

    def __init__(self, table: FrameTable, model: VideoWorldModel, conditions: Conditions) -> None:
        self.device = table.frames.device
        self._table = table
        self._scheduler = model.scheduler
        self._conditions = conditions
        self._tokens = model.tokenize(table.instructions).to(self.device)
        self._ends = table.instruction_ends()
        self._mixes = torch.tensor(_mixes(conditions), device=self.device)

    def draw_mixes(self, count: int, generator: torch.Generator) -> Tensor:
        """Random mixes of conditions, `(count,)`, as indices into the fields of `Conditions`."""
        return torch.multinomial(self._mixes, count, replacement=True, generator=generator)

    def batch(
        self,
        first: Tensor,
        mix: Tensor,
        num_past: int,
        length: int,
        generator: torch.Generator,
        context: Tensor | None = None,
    ) -> SlowBatch:
        """Windows of `length` frames from the rows `first` on, `(batch,)`, with fresh noise.

        Args:
            first: Rows of the table.
            mix: `(batch,)`, each sample's mix of conditions.
            num_past: f_p.
            length: Frames of a window.
            generator: Source of the noise.
            context: `(batch, frames)`, rows of other past frames than the f_p at a window's start.
        """
        table = self._table
        told = table.instruction_ids[first + num_past - 1] > 0
        language = (mix == LANGUAGE) & told
        batch_size = len(first)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=self.device)

        rows = first[:, None] + torch.arange(length, device=self.device)
        end = self._ends[first + num_past - 1, None]
        rows = torch.where(language[:, None], torch.minimum(rows, end), rows)
        leading = rows[:, num_past - 1 : -1]
        if context is not None:
            rows, num_past = torch.cat([context, rows[:, num_past:]], dim=1), context.shape[1]
        latents = table.frames[rows].float().transpose(1, 2)
        ids = table.instruction_ids[leading]
        holds = language | ((mix == _BOTH) & (ids == ids[:, :1]).all(dim=1))
        texts = ids[:, 0] * holds
        # Where there is no instruction to follow, the sample trains on actions.
        actions_given = (mix == ACTIONS) | (mix == _BOTH) | ((mix == LANGUAGE) & ~language)
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        scale = self._conditions.context_noise * uniform(batch_size, 1, 1, 1, 1)
        # Half of the contexts stay exact, as observed frames are.
        scale = scale * (uniform(batch_size, 1, 1, 1, 1) < 0.5)
        context_noise = torch.randn(latents.shape, generator=generator, device=self.device)
        return SlowBatch(
            latents=latents,
            num_past=num_past,
            actions=table.actions[leading],
            token_ids=self._tokens[texts],
            actions_given=actions_given.float(),
            context_given=(mix != _WHOLE_SEQUENCE).float(),
            noise=noise,
            context_noise=scale * context_noise,
            timesteps=draw_timesteps(self._scheduler, uniform(batch_size)),
        )


def slow_batches(
    table: FrameTable, model: VideoWorldModel, recipe: WorldModelRecipe
) -> Callable[[torch.Generator], SlowBatch]:
    """Random windows of an encoded table, each with a random mix of conditions."""
    windows = SlowWindows(table, model, recipe.conditions)
    num_frames = recipe.num_past_frames + recipe.num_future_frames
    starts = table.window_starts(num_frames)
    told = {past: told_starts(table, past) for past in (1, recipe.num_past_frames)}
    batch_size = recipe.optimisation.batch_size

    def draw(generator: torch.Generator) -> SlowBatch:
        def uniform() -> Tensor:
            return torch.rand(batch_size, generator=generator, device=windows.device)

        # Drawn on the host: a look at a number on the device would make the host wait for it.
        host = np.random.default_rng(generator.initial_seed())
        single_past, single_future = host.random(2) < (
            recipe.conditions.single_past_frame,
            recipe.conditions.single_future_frame,
        )
        num_past = 1 if single_past else recipe.num_past_frames
        length = num_past + 1 if single_future else num_frames
        mix = windows.draw_mixes(batch_size, generator)
        first = pick(starts, uniform())
        if len(told[num_past]):
            first = torch.where(mix == LANGUAGE, pick(told[num_past], uniform()), first)
        return windows.batch(first, mix, num_past, length, generator)

    return draw


def build_scheduler(
    prediction: Prediction = "flow", shift: float = 4.0
) -> FlowMatchEulerDiscreteScheduler | DDIMScheduler:
    """The noise schedule of what the denoiser predicts.

    Rectified flow has straight paths, so that a few Euler steps suffice. The DDPM family has the
    betas of the paper's base model; the v-target alone can be told at a noise that leaves nothing
    of the frames, where sampling begins (Lin et al., 2023, arXiv 2305.08891).
    """
    if prediction == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        rescale_betas_zero_snr=prediction == "v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )


def prediction_of(scheduler: Any) -> str:
    """What a denoiser with this noise schedule predicts, as in a recipe."""
    if is_flow(scheduler):
        return "flow"
    prediction: str = scheduler.config.prediction_type
    return prediction


def told_starts(table: FrameTable, num_past: int) -> Tensor:
    """Rows at which a window can start whose first future frame follows an instruction, `(M,)`."""
    starts = torch.nonzero(table.remaining >= num_past).flatten()
    return starts[table.instruction_ids[starts + num_past - 1] > 0]


def pick(choices: Tensor, uniform: Tensor) -> Tensor:
    """One of `choices` for each uniform number in [0, 1)."""
    return choices[(uniform * len(choices)).long().clamp(max=len(choices) - 1)]


def _mixes(conditions: Conditions) -> list[float]:
    return [
        conditions.language,
        conditions.actions,
        conditions.language_and_actions,
        conditions.none,
        conditions.whole_sequence,
    ]
