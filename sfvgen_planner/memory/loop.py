"""The slow-fast learning loop: train a model to use what its memories hold (Algorithm 1b)."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.files import writing_errors
from sfvgen_planner.memory.adapter import Adapters
from sfvgen_planner.memory.adapter_files import SavedAdapter, trained_adapter, write_adapter
from sfvgen_planner.memory.config import MemoryConfig
from sfvgen_planner.memory.context_learning import ContextBatches, ContextObjective
from sfvgen_planner.memory.contexts import CONTEXTS
from sfvgen_planner.memory.loop_recipe import LoopRecipe, LoopStage
from sfvgen_planner.memory.rewritten_batches import RewrittenBatches
from sfvgen_planner.memory.slow_fast import LoopBatches, SlowFastObjective
from sfvgen_planner.memory.stored_batches import StoredBatches
from sfvgen_planner.world_model import VideoWorldModel
from sfvgen_planner.world_model.checkpoint import FINAL_FOLDER, MEMORY_FOLDER
from sfvgen_planner.world_model.data_facts import count_data
from sfvgen_planner.world_model.draw_batch import DrawBatch
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.metrics_log import Metrics
from sfvgen_planner.world_model.models import load_models, save_checkpoint
from sfvgen_planner.world_model.run_record import is_finished, run_record, running_alone, write_run
from sfvgen_planner.world_model.sharding import is_sharding
from sfvgen_planner.world_model.slow_learning import mean_error
from sfvgen_planner.world_model.stages import HELD_OUT_EVERY
from sfvgen_planner.world_model.trainer import Evaluation, begin_training, train
from sfvgen_planner.world_model.training_checks import check_model, warn_of_other_data


def slow_fast_loop(
    recipe: LoopRecipe, data: Path, out: Path, init_from: Path, known_episodes: int = 0
) -> Path:
    """Run the recipe's stages one after another; resume whatever `out` holds already.

    A run that has ended in its model leaves it as it is.

    Args:
        recipe: The memory, its curriculum and the optimisation.
        data: Episode store made by `sfvgen collect`.
        out: Folder for the stages' checkpoints; the finished model goes to `out/model`.
        init_from: The checkpoint folder that slow learning ended in. One that has been through a
            loop with such a memory goes on from there (`MemoryConfig.can_continue`).
        known_episodes: The store's first episodes, which `init_from` has learnt from before; its
            `data_steps` count them already.

    Returns:
        The finished checkpoint folder, with the trained adapters in `memory` if there are any.

    Raises:
        SfvgenError: The store is empty, does not fit the model or has nothing to recall, or `out`
            can't be written or holds another run.
        KeyboardInterrupt: The run was interrupted; the same call resumes it.
    """
    store = EpisodeStore.open(data)
    models = load_models(init_from)
    check_model(models.world_model, store)
    warn_of_other_data(recipe.data, store)
    record = run_record(recipe, store, init_from)
    accelerator = begin_training(recipe.seed, recipe.mixed_precision)
    final = out / FINAL_FOLDER
    with running_alone(out, record, init_from, accelerator.is_main_process):
        if is_finished(out, record):
            return final
        require(
            not (
                is_sharding(accelerator)
                and any(
                    stage.stored_batches or stage.second_order_writes for stage in recipe.stages
                )
            ),
            f"the stored_batches and second_order_writes of the recipe {recipe.name} need a whole "
            "model; train with DDP, or leave them out",
        )
        model = models.world_model.to(accelerator.device)
        count_data(model, store, known_episodes)
        table = FrameTable.from_store(store, accelerator.device)
        held_out = None
        if recipe.eval_every:
            table, held_out = table.split(HELD_OUT_EVERY)
            held_out = held_out.encoded(model)
        table = table.encoded(model)
        config = recipe.memory_config
        adapters = None if config is None else _attach(model, recipe, config, init_from)
        if recipe.compile and accelerator.device.type == "cuda":
            # Writes, judged and ordinary windows have a graph each, and more in a further stage.
            torch._dynamo.config.recompile_limit = 8 * len(recipe.stages)
            model.unet.compile(dynamic=False)
        if accelerator.is_main_process:
            write_run(out, record)
        for index, stage in enumerate(recipe.stages):
            batches = LoopBatches(table, model, recipe, stage)
            objective: nn.Module
            draw_batch: DrawBatch
            evaluation = None
            if adapters is None:
                objective = ContextObjective(model)
                draw_batch = ContextBatches(batches, CONTEXTS[recipe.context])
            else:
                objective, draw_batch = _with_memory(
                    model, adapters, recipe, stage, batches, accelerator
                )
                if held_out is not None:
                    measure = loop_metrics(objective, LoopBatches(held_out, model, recipe, stage))
                    evaluation = Evaluation(recipe.eval_every, measure)
            train(
                objective,
                draw_batch,
                stage.optimisation,
                out / f"stage_{index}",
                accelerator,
                recipe.seed + index,
                f"slow-fast loop {index + 1} of {len(recipe.stages)}",
                evaluation,
            )
        if accelerator.is_main_process:
            write_more = None if adapters is None else _detached(adapters)
            with writing_errors(final):
                save_checkpoint(models, final, write_more)
            write_run(out, record, finished=True)
        accelerator.wait_for_everyone()
        return final


def _detached(adapters: Adapters) -> Callable[[Path], None]:
    """Take the adapters out of the model; a function that writes them into a checkpoint folder."""
    tensors = {name: value.cpu().clone() for name, value in adapters.tensors().items()}
    adapters.detach()
    return lambda folder: write_adapter(folder / MEMORY_FOLDER, adapters, tensors)


def _with_memory(
    model: VideoWorldModel,
    adapters: Adapters,
    recipe: LoopRecipe,
    stage: LoopStage,
    batches: LoopBatches,
    accelerator: Accelerator,
) -> tuple[SlowFastObjective, DrawBatch]:
    """What a stage trains, and on which batches."""
    config = recipe.training_config(stage)
    assert config is not None
    objective = SlowFastObjective(model, adapters, config, stage.second_order, recipe.change_weight)
    objective.requires_grad_(not stage.adapters_only)
    if model.config.text_frozen:
        model.text_encoder.requires_grad_(False)
    for parameter in adapters.parameters():
        # With Adam every memory starts at the same untrained adapters, as in the paper.
        parameter.requires_grad_(config.rule == "normalised")
    if stage.stored_batches:
        return objective, StoredBatches(batches, objective, stage)
    if stage.second_order_writes:
        return objective, RewrittenBatches(
            batches,
            objective,
            stage.second_order_writes,
            accelerator.autocast,
            stage.optimisation.capture and accelerator.device.type == "cuda",
        )
    return objective, batches


def _attach(
    model: VideoWorldModel, recipe: LoopRecipe, wanted: MemoryConfig, init_from: Path
) -> Adapters:
    """Fresh adapters, or those that an earlier loop has trained."""
    adapters = Adapters(model, wanted, recipe.seed)
    saved = earlier_adapters(recipe, wanted, init_from)
    if saved is not None:
        saved.require_fits(model.unet)
        adapters.load_smaller(saved.tensors)
    return adapters


def earlier_adapters(
    recipe: LoopRecipe, wanted: MemoryConfig, init_from: Path
) -> SavedAdapter | None:
    """The adapters that an earlier loop has trained; None where there was none.

    Raises:
        SfvgenError: They are unreadable, or those of another memory than the recipe's.
    """
    saved = trained_adapter(init_from)
    if saved is not None and not wanted.can_continue(saved.config):
        raise SfvgenError(
            f"{saved.folder} has a memory with other settings than the recipe {recipe.name}; make "
            "them alike, or delete that folder to start afresh"
        )
    return saved


def loop_metrics(objective: SlowFastObjective, batches: LoopBatches) -> Callable[[int], Metrics]:
    """A function that measures the loop, each time on the same recalls with the same noise.

    It returns for each number of chunks, and on average, the loss of the judged windows under the
    episode's memory, under none and under another episode's.

    Args:
        objective: The loop's objective.
        batches: Draws held-out batches.
    """

    def evaluate(step: int) -> Metrics:
        metrics: dict[str, float] = {}
        # A denoiser compiled for training would be compiled again for these shapes.
        with torch.compiler.set_stance("force_eager"):
            for chunks in batches.horizons:
                generator = torch.Generator(batches.device).manual_seed(chunks)
                writes, judged = batches.draw(chunks, generator, recall_share=1.0)
                fast = {k: v.detach() for k, v in objective.write(writes).items()}
                other = {name: value.roll(1, 0) for name, value in fast.items()}
                with torch.no_grad():
                    for name, part in {
                        "with": objective.errors(fast, chunks, judged),
                        "without": objective.slow.errors(judged),
                        "of_another": objective.errors(other, chunks, judged),
                    }.items():
                        loss = mean_error(part).item()
                        metrics[f"held_out_{name}_memory/{chunks}_chunks"] = loss
        for name in ("with", "without", "of_another"):
            key = f"held_out_{name}_memory"
            values = [value for k, value in metrics.items() if k.startswith(f"{key}/")]
            metrics[key] = float(sum(values) / len(values))
        return dict(metrics)

    return evaluate
