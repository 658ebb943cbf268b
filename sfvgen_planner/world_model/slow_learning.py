"""Slow learning: masked conditional video diffusion on many episodes (paper section 3.1)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.objective import add_noise, draw_timesteps, target
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.recipe import Conditions, Prediction, WorldModelRecipe


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
        self._denoise = model.denoise
        self._scheduler = model.scheduler

    def forward(self, *fields: Tensor) -> Tensor:
        """Mean squared error of the prediction; `fields` are those of `SlowBatch`."""
        batch = SlowBatch(*fields)  # type: ignore[arg-type]
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
        counted = (~clean).expand_as(error).sum()
        return error.sum() / counted


def slow_batches(
    table: FrameTable, model: VideoWorldModel, recipe: WorldModelRecipe
) -> Callable[[torch.Generator], SlowBatch]:
    """Random windows of an encoded table, each with a random mix of conditions.

    A language sample shows its instruction being followed to the end; from then on it stands
    still, so that the video of an instruction is whole wherever in it the window begins. Together
    with actions, language is used only where one instruction holds over all future frames.
    """
    device = table.frames.device
    conditions = recipe.conditions
    tokens = model.tokenize(table.instructions).to(device)
    num_frames = recipe.num_past_frames + recipe.num_future_frames
    starts = table.window_starts(num_frames)
    ends = table.instruction_ends()
    told = {past: told_starts(table, past) for past in (1, recipe.num_past_frames)}
    mixes = torch.tensor(_mixes(conditions), device=device)
    batch_size = recipe.optimisation.batch_size

    def draw(generator: torch.Generator) -> SlowBatch:
        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        # Drawn on the host: a look at a number on the device would make the host wait for it.
        host = np.random.default_rng(generator.initial_seed())
        single_past, single_future = host.random(2) < (
            conditions.single_past_frame,
            conditions.single_future_frame,
        )
        num_past = 1 if single_past else recipe.num_past_frames
        length = num_past + 1 if single_future else num_frames
        mix = torch.multinomial(mixes, batch_size, replacement=True, generator=generator)
        first = _pick(starts, uniform(batch_size))
        language = (mix == 0) & (len(told[num_past]) > 0)
        if len(told[num_past]):
            first = torch.where(language, _pick(told[num_past], uniform(batch_size)), first)
        rows = first[:, None] + torch.arange(length, device=device)
        end = ends[first + num_past - 1, None]
        rows = torch.where(language[:, None], torch.minimum(rows, end), rows)
        latents = table.frames[rows].float().transpose(1, 2)
        leading = rows[:, num_past - 1 : -1]
        ids = table.instruction_ids[leading]
        holds = language | ((mix == 2) & (ids == ids[:, :1]).all(dim=1))
        texts = ids[:, 0] * holds
        # Where there is no instruction to follow, the sample trains on actions.
        actions_given = (mix == 1) | (mix == 2) | ((mix == 0) & ~language)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        scale = conditions.context_noise * uniform(batch_size, 1, 1, 1, 1)
        # Half of the contexts stay exact, as observed frames are.
        scale = scale * (uniform(batch_size, 1, 1, 1, 1) < 0.5)
        return SlowBatch(
            latents=latents,
            num_past=num_past,
            actions=table.actions[leading],
            token_ids=tokens[texts],
            actions_given=actions_given.float(),
            context_given=(mix != 4).float(),
            noise=noise,
            context_noise=scale * torch.randn(latents.shape, generator=generator, device=device),
            timesteps=draw_timesteps(model.scheduler, uniform(batch_size)),
        )

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


def told_starts(table: FrameTable, num_past: int) -> Tensor:
    """Rows at which a window can start whose first future frame follows an instruction, `(M,)`."""
    starts = torch.nonzero(table.remaining >= num_past).flatten()
    return starts[table.instruction_ids[starts + num_past - 1] > 0]


def _pick(choices: Tensor, uniform: Tensor) -> Tensor:
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
