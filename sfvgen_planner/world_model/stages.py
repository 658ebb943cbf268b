"""The training stages of a recipe."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model.autoencoder import (
    AutoencoderObjective,
    calibrate_latents,
    frame_batches,
)
from sfvgen_planner.world_model.checkpoint import (
    INVERSE_DYNAMICS_FOLDER,
    OUTCOME_HEAD_FOLDER,
    TEMPORAL_DISTANCE_FOLDER,
)
from sfvgen_planner.world_model.data_facts import success_ends
from sfvgen_planner.world_model.denoiser import Denoiser
from sfvgen_planner.world_model.draw_batch import DrawBatch
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.gradient_checkpointing import enable_gradient_checkpointing
from sfvgen_planner.world_model.held_out import held_out_metrics
from sfvgen_planner.world_model.inverse_learning import InverseObjective, pair_batches
from sfvgen_planner.world_model.kernels import use_trainable_attention
from sfvgen_planner.world_model.models import Models
from sfvgen_planner.world_model.new_models import build_outcome_head, build_temporal_distance
from sfvgen_planner.world_model.objective import is_flow
from sfvgen_planner.world_model.outcome_learning import OutcomeObjective, calibrate, outcome_batches
from sfvgen_planner.world_model.recipe import (
    AutoencoderRecipe,
    InverseDynamicsRecipe,
    Optimisation,
    OutcomeHeadRecipe,
    TemporalDistanceRecipe,
    WorldModelRecipe,
)
from sfvgen_planner.world_model.slow_learning import SlowObjective, build_scheduler, slow_batches
from sfvgen_planner.world_model.temporal_learning import DistanceObjective, distance_batches
from sfvgen_planner.world_model.trainer import Evaluation, train
from sfvgen_planner.world_model.training_checkpoints import begun_stages, found_checkpoints

AUTOENCODER_STAGE = "autoencoder"
STAGES = (
    AUTOENCODER_STAGE,
    "world_model",
    INVERSE_DYNAMICS_FOLDER,
    OUTCOME_HEAD_FOLDER,
    TEMPORAL_DISTANCE_FOLDER,
)
"""In the order of training; each stage's checkpoints go to a folder of its name."""
HELD_OUT_EVERY = 50
"""One episode in so many is held out where held-out metrics are asked for, or a head calibrated."""


def check_latents_stay(recipe: AutoencoderRecipe | None, out: Path) -> None:
    """Refuse to train an autoencoder on whose latents the run has trained other stages already.

    Args:
        recipe: the autoencoder's, if it is trained.
        out: the run's folder.
    """
    if recipe is None or recipe.optimisation is None or recipe.decoder_only:
        return
    own = out / AUTOENCODER_STAGE
    steps = [int(folder.name.rpartition("-")[2]) for folder in found_checkpoints(own)]
    later = [folder for folder in begun_stages(out) if folder != own]
    if steps and later and max(steps) < recipe.optimisation.steps:
        raise SfvgenError(
            f"{later[0]} was trained on the latents of an autoencoder of {max(steps)} steps, which "
            f"{recipe.optimisation.steps} steps would change; train into another --out folder"
        )


class Stages:
    """The training stages of one run; each trains its part of the models in place.

    They share the frames, and later stages read latents of the autoencoder as it is by then.

    Args:
        models: On the accelerator's device.
        table: The frames to train on.
        held_out: Frames of other episodes, if there are any.
        out: Folder for the stages' checkpoints.
        accelerator: Device, processes and precision.
        seed: Seed of the run.
    """

    def __init__(
        self,
        models: Models,
        table: FrameTable,
        held_out: FrameTable | None,
        out: Path,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        self._models = models
        self._model = models.world_model
        self._table = table
        self._held_out = held_out
        self._out = out
        self._accelerator = accelerator
        self._device = accelerator.device
        self._seed = seed

    def train_autoencoder(self, recipe: AutoencoderRecipe) -> None:
        """The autoencoder, whose latents get unit variance, or its decoder alone.

        A pretrained one without an optimisation stays as it is.
        """
        vae, how = self._model.vae, recipe.optimisation
        if how is None:
            return
        if recipe.decoder_only:
            # Some pretrained autoencoders have no `quant_conv`.
            for module in filter(None, (vae.encoder, vae.quant_conv)):
                module.requires_grad_(False)
        objective = AutoencoderObjective(vae, recipe, self._table)
        if recipe.compile and self._device.type == "cuda":
            objective.compile(dynamic=False)
        draw = frame_batches(self._table, how.batch_size, self._model.latent_size)
        self._train(AUTOENCODER_STAGE, objective, draw, how)
        if not recipe.decoder_only:
            calibrate_latents(vae, self._table)

    def train_world_model(self, recipe: WorldModelRecipe) -> None:
        """The denoiser and, unless frozen, the text encoder (slow learning), on frozen latents."""
        model, table = self._model, self._table
        if is_flow(model.scheduler):
            # A base model of another kind keeps the schedule that it was pretrained with.
            model.register_modules(scheduler=build_scheduler(recipe.prediction, recipe.shift))
        if recipe.text.train is not None:
            model.register_to_config(text_frozen=not recipe.text.train)
            model.text_encoder.requires_grad_(recipe.text.train)
        prepare_denoiser(model.unet, recipe, self._device)
        evaluation = None
        if self._held_out is not None:
            measure = held_out_metrics(self._held_out, model, recipe)
            evaluation = Evaluation(recipe.eval_every, measure)
        draw = _when_needed(lambda: slow_batches(table.encoded(model), model, recipe))
        self._train("world_model", SlowObjective(model), draw, recipe.optimisation, evaluation)

    def train_inverse_dynamics(self, recipe: InverseDynamicsRecipe) -> None:
        """The head that reads actions off pairs of frames."""
        how = recipe.optimisation
        objective = InverseObjective(self._models.inverse_dynamics)
        draw = pair_batches(self._table, self._model, how.batch_size)
        self._train(INVERSE_DYNAMICS_FOLDER, objective, draw, how)

    def train_outcome_head(self, recipe: OutcomeHeadRecipe, store: EpisodeStore) -> None:
        """The head that tells success and reward, calibrated on episodes that it never saw.

        Args:
            recipe: Sizes of a new head, and the optimisation.
            store: Where the frames come from; tells a new head whether success ends an episode.
        """
        model, encoded = self._model, self._table.encoded(self._model)
        if self._held_out is None:
            encoded, unseen = encoded.split(HELD_OUT_EVERY)
        else:
            unseen = self._held_out.encoded(model)
        draw = outcome_batches(encoded, model, recipe)
        head = self._models.outcome_head or build_outcome_head(
            recipe, model, encoded, success_ends(store)
        )
        self._models.outcome_head = head.to(self._device)
        self._train(OUTCOME_HEAD_FOLDER, OutcomeObjective(head), draw, recipe.optimisation)
        calibrate(head, unseen, model)

    def train_temporal_distance(self, recipe: TemporalDistanceRecipe) -> None:
        """The head that tells how many frames lead from one frame to another."""
        model, table = self._model, self._table
        distance = self._models.temporal_distance or build_temporal_distance(recipe, model)
        self._models.temporal_distance = distance.to(self._device)
        draw = _when_needed(lambda: distance_batches(table.encoded(model), distance, recipe))
        objective = DistanceObjective(distance)
        self._train(TEMPORAL_DISTANCE_FOLDER, objective, draw, recipe.optimisation)

    def _train(
        self,
        stage: str,
        objective: nn.Module,
        draw_batch: DrawBatch,
        how: Optimisation,
        evaluation: Evaluation | None = None,
    ) -> None:
        folder, seed = self._out / stage, self._seed + STAGES.index(stage)
        name = stage.replace("_", " ")
        train(objective, draw_batch, how, folder, self._accelerator, seed, name, evaluation)


def _when_needed(make: Callable[[], DrawBatch]) -> DrawBatch:
    """Draws what `make` draws, made with the first batch: a finished stage makes nothing."""
    made = cache(make)
    return lambda generator: made()(generator)


def prepare_denoiser(unet: Denoiser, recipe: WorldModelRecipe, device: torch.device) -> None:
    """Make the denoiser as fast in training as the recipe says, in place."""
    use_trainable_attention(unet)
    if recipe.gradient_checkpointing:
        enable_gradient_checkpointing(unet)
    if recipe.compile and device.type == "cuda":
        unet.compile(dynamic=False)
