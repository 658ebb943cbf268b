"""Training of a recipe, from a store to the checkpoint folder it ends in."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.files import writing_errors
from sfvgen_planner.world_model.checkpoint import FINAL_FOLDER, MEMORY_FOLDER
from sfvgen_planner.world_model.data_facts import count_data
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.going_on import (
    going_on,
    keeps_memory,
    leave_out_misfits,
    models_to_go_on_from,
)
from sfvgen_planner.world_model.models import save_checkpoint
from sfvgen_planner.world_model.new_models import Parts, build_models, load_parts
from sfvgen_planner.world_model.outcome_learning import check_outcomes
from sfvgen_planner.world_model.recipe import Recipe
from sfvgen_planner.world_model.run_record import is_finished, run_record, running_alone, write_run
from sfvgen_planner.world_model.stages import HELD_OUT_EVERY, Stages, check_latents_stay
from sfvgen_planner.world_model.temporal_learning import check_pairs
from sfvgen_planner.world_model.trainer import begin_training
from sfvgen_planner.world_model.training_checks import warn_of_other_data

logger = logging.getLogger(__name__)


def train_recipe(recipe: Recipe, data: Path, out: Path, init_from: Path | None = None) -> Path:
    """Train the recipe's stages one after another; resume whatever `out` holds already.

    A run that has ended in its model leaves it as it is.

    Args:
        recipe: Sizes and optimisation of each stage.
        data: Episode store made by `sfvgen collect`.
        out: Folder for the stages' checkpoints; the finished model goes to `out/model`.
        init_from: A checkpoint folder to go on from; its sizes, its window and what it predicts
            count, not the recipe's, and its memory is kept where no stage trains what the memory
            was trained with. A head on its latents is left out where they change and the recipe
            does not train the head on. A recipe without it must have all stages but these heads.
            A folder in the layout of the paper's base model gets the recipe's window.

    Returns:
        The finished checkpoint folder.

    Raises:
        SfvgenError: The store is empty, too small for a stage or does not fit the model, a stage is
            missing or asks for another window or prediction than the checkpoint's, a pretrained
            component can't be loaded, or `out` can't be written or holds another run.
        KeyboardInterrupt: The run was interrupted; the same call resumes it.
    """
    store = EpisodeStore.open(data)
    slow = recipe.world_model
    models, parts = None, Parts()
    if init_from is None:
        parts = load_parts(recipe, store)
    else:
        models = models_to_go_on_from(init_from, recipe, store)
        slow = None if slow is None else going_on(slow, models.world_model)
    warn_of_other_data(recipe.data, store)
    record = run_record(recipe, store, init_from)
    accelerator = begin_training(recipe.seed, recipe.mixed_precision)
    final = out / FINAL_FOLDER
    with running_alone(out, record, init_from, accelerator.is_main_process):
        if is_finished(out, record):
            return final
        check_latents_stay(recipe.autoencoder, out)
        memory = None if init_from is None else init_from / MEMORY_FOLDER
        if memory is not None and not (memory.is_dir() and keeps_memory(recipe)):
            if memory.is_dir() and accelerator.is_main_process:
                logger.warning(
                    "the memory in %s does not fit the weights that this recipe trains and is left "
                    "out of the new checkpoint; train another with `sfvgen loop`",
                    memory,
                )
            memory = None
        if models is not None:
            leave_out_misfits(models, recipe, accelerator.is_main_process)
        table = FrameTable.from_store(store, accelerator.device)
        if recipe.outcome_head is not None:
            check_outcomes(table)
        models = models or build_models(recipe, store.spec, table.instructions, parts)
        model = models.world_model.to(accelerator.device)
        count_data(model, store)

        held_out = None
        if slow is not None and slow.eval_every:
            table, held_out = table.split(HELD_OUT_EVERY)
        if slow is not None:
            for part in filter(None, (table, held_out)):
                part.window_starts(slow.num_past_frames + slow.num_future_frames)
        if recipe.outcome_head is not None and held_out is None:
            # Told here, not after the stages before.
            table.require_several()
        temporal = recipe.temporal_distance
        if temporal is not None:
            known = models.temporal_distance
            check_pairs(table, temporal.max_frames if known is None else known.config.max_frames)
        if accelerator.is_main_process:
            write_run(out, record)

        stages = Stages(models, table, held_out, out, accelerator, recipe.seed)
        if recipe.autoencoder is not None:
            stages.train_autoencoder(recipe.autoencoder)
        model.vae.requires_grad_(False)
        if slow is not None:
            stages.train_world_model(slow)
        if recipe.inverse_dynamics is not None:
            stages.train_inverse_dynamics(recipe.inverse_dynamics)
        if recipe.outcome_head is not None:
            stages.train_outcome_head(recipe.outcome_head, store)
        if temporal is not None:
            stages.train_temporal_distance(temporal)
        if accelerator.is_main_process:
            with writing_errors(final):
                save_checkpoint(models, final, None if memory is None else _copied(memory))
            write_run(out, record, finished=True)
        accelerator.wait_for_everyone()
        return final


def _copied(memory: Path) -> Callable[[Path], None]:
    """A function that puts a copy of a memory's folder into a checkpoint."""

    def copy(folder: Path) -> None:
        shutil.copytree(memory, folder / MEMORY_FOLDER)

    return copy
