"""The training stages of a recipe, and the checkpoint folder they end in."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from sfvgen_policies.inverse_dynamics import InverseDynamics
from torch import nn

from sfvgen_planner.data import EpisodeStore, StoreSpec
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.files import prepare_folder, writing_errors
from sfvgen_planner.world_model.assembly import (
    Parts,
    build_inverse_dynamics,
    build_world_model,
    load_base_model,
    load_parts,
)
from sfvgen_planner.world_model.autoencoder import (
    AutoencoderObjective,
    calibrate_latents,
    frame_batches,
)
from sfvgen_planner.world_model.checkpoint import (
    INVERSE_DYNAMICS_FOLDER,
    MEMORY_FOLDER,
    OUTCOME_HEAD_FOLDER,
    TEMPORAL_DISTANCE_FOLDER,
    forget_origin,
    is_world_model,
    write_manifest,
)
from sfvgen_planner.world_model.denoiser import Denoiser
from sfvgen_planner.world_model.draw_batch import DrawBatch
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.gradient_checkpointing import enable_gradient_checkpointing
from sfvgen_planner.world_model.heads import load_heads, required_inverse_dynamics
from sfvgen_planner.world_model.held_out import held_out_metrics
from sfvgen_planner.world_model.inverse_learning import InverseObjective, pair_batches
from sfvgen_planner.world_model.kernels import use_trainable_attention
from sfvgen_planner.world_model.model_card import write_model_card
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from sfvgen_planner.world_model.outcome_learning import (
    OutcomeObjective,
    calibrate,
    check_outcomes,
    outcome_batches,
    told_steps,
)
from sfvgen_planner.world_model.pipeline import VideoWorldModel
from sfvgen_planner.world_model.recipe import (
    Optimisation,
    OutcomeHeadRecipe,
    Recipe,
    TemporalDistanceRecipe,
    WorldModelRecipe,
)
from sfvgen_planner.world_model.run_record import check_run, run_record, write_run
from sfvgen_planner.world_model.slow_learning import (
    SlowObjective,
    build_scheduler,
    prediction_of,
    slow_batches,
)
from sfvgen_planner.world_model.temporal_distance import TemporalDistance
from sfvgen_planner.world_model.temporal_learning import (
    DistanceObjective,
    check_pairs,
    distance_batches,
)
from sfvgen_planner.world_model.trainer import Evaluation, begin_training, train

logger = logging.getLogger(__name__)

STAGES = (
    "autoencoder",
    "world_model",
    INVERSE_DYNAMICS_FOLDER,
    OUTCOME_HEAD_FOLDER,
    TEMPORAL_DISTANCE_FOLDER,
)
"""In the order of training; each stage's checkpoints go to a folder of its name."""
FINAL_FOLDER = "model"
HELD_OUT_EVERY = 50
"""One episode in so many is held out where held-out metrics are asked for, or a head calibrated."""


@dataclass
class Models:
    """What a checkpoint folder holds.

    Attributes:
        world_model: The video world model.
        inverse_dynamics: Reads actions off its videos.
        outcome_head: Judges its videos; None before it is trained.
        temporal_distance: Tells how far they are from a goal image; None before it is trained.
    """

    world_model: VideoWorldModel
    inverse_dynamics: InverseDynamics
    outcome_head: OutcomeHead | None = None
    temporal_distance: TemporalDistance | None = None


def train_recipe(recipe: Recipe, data: Path, out: Path, init_from: Path | None = None) -> Path:
    """Train the recipe's stages one after another; resume whatever `out` holds already.

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
        models = _models_to_go_on_from(init_from, recipe, store)
        slow = None if slow is None else _going_on(slow, models.world_model)
    record = run_record(recipe, store, init_from)
    check_run(out, record)
    prepare_folder(out)
    accelerator = begin_training(recipe.seed, recipe.mixed_precision)
    memory = None if init_from is None else init_from / MEMORY_FOLDER
    if memory is not None and not (memory.is_dir() and _keeps_memory(recipe)):
        if memory.is_dir() and accelerator.is_main_process:
            logger.warning(
                "the memory in %s does not fit the weights that this recipe trains and is left "
                "out of the new checkpoint; train another with `sfvgen loop`",
                memory,
            )
        memory = None
    if models is not None:
        _leave_out_misfits(models, recipe, accelerator.is_main_process)
    table = FrameTable.from_store(store, accelerator.device)
    if recipe.outcome_head is not None:
        check_outcomes(table)
    models = models or _build_models(recipe, store.spec, table.instructions, parts)
    model = models.world_model.to(accelerator.device)
    count_data(model, store)

    held_out = None
    if slow is not None and slow.eval_every:
        table, held_out = table.split(HELD_OUT_EVERY)
    if slow is not None:
        table.window_starts(slow.num_past_frames + slow.num_future_frames)
    temporal = recipe.temporal_distance
    if temporal is not None:
        known = models.temporal_distance
        check_pairs(table, temporal.max_frames if known is None else known.config.max_frames)
    if accelerator.is_main_process:
        write_run(out, record)

    def learn(
        stage: str,
        objective: nn.Module,
        draw_batch: DrawBatch,
        how: Optimisation,
        evaluation: Evaluation | None = None,
    ) -> None:
        seed, name = recipe.seed + STAGES.index(stage), stage.replace("_", " ")
        train(objective, draw_batch, how, out / stage, accelerator, seed, name, evaluation)

    on_gpu = accelerator.device.type == "cuda"
    how = None if recipe.autoencoder is None else recipe.autoencoder.optimisation
    if recipe.autoencoder is not None and how is not None:
        if recipe.autoencoder.decoder_only:
            # Some pretrained autoencoders have no `quant_conv`.
            for module in filter(None, (model.vae.encoder, model.vae.quant_conv)):
                module.requires_grad_(False)
        reconstruct = AutoencoderObjective(model.vae, recipe.autoencoder, table)
        if recipe.autoencoder.compile and on_gpu:
            reconstruct.compile(dynamic=False)
        learn(
            "autoencoder",
            reconstruct,
            frame_batches(table, how.batch_size, model.latent_size),
            how,
        )
        if not recipe.autoencoder.decoder_only:
            calibrate_latents(model.vae, table)
    model.vae.requires_grad_(False)
    if slow is not None:
        if isinstance(model.scheduler, FlowMatchEulerDiscreteScheduler):
            # A base model of another kind keeps the schedule that it was pretrained with.
            model.register_modules(scheduler=build_scheduler(slow.prediction, slow.shift))
        if slow.text.train is not None:
            model.register_to_config(text_frozen=not slow.text.train)
            model.text_encoder.requires_grad_(slow.text.train)
        prepare_denoiser(model.unet, slow, accelerator.device)
        evaluation = None
        if held_out is not None:
            measure = held_out_metrics(held_out, model, slow)
            evaluation = Evaluation(slow.eval_every, measure)
        learn(
            "world_model",
            SlowObjective(model),
            _when_needed(lambda: slow_batches(table.encoded(model), model, slow)),
            slow.optimisation,
            evaluation,
        )
    if recipe.inverse_dynamics is not None:
        how = recipe.inverse_dynamics.optimisation
        learn(
            INVERSE_DYNAMICS_FOLDER,
            InverseObjective(models.inverse_dynamics),
            pair_batches(table, model, how.batch_size),
            how,
        )
    if recipe.outcome_head is not None:
        encoded = table.encoded(model)
        if held_out is None:
            encoded, unseen = encoded.split(HELD_OUT_EVERY)
        else:
            unseen = held_out.encoded(model)
        draw_outcomes = outcome_batches(encoded, model, recipe.outcome_head)
        head = models.outcome_head or _build_outcome_head(
            recipe.outcome_head, model, encoded, success_ends(store)
        )
        models.outcome_head = head.to(accelerator.device)
        learn(
            OUTCOME_HEAD_FOLDER,
            OutcomeObjective(head),
            draw_outcomes,
            recipe.outcome_head.optimisation,
        )
        calibrate(head, unseen, model)
    if temporal is not None:
        distance = models.temporal_distance or _build_temporal_distance(temporal, model)
        models.temporal_distance = distance.to(accelerator.device)
        learn(
            TEMPORAL_DISTANCE_FOLDER,
            DistanceObjective(distance),
            _when_needed(lambda: distance_batches(table.encoded(model), distance, temporal)),
            temporal.optimisation,
        )
    final = out / FINAL_FOLDER
    if accelerator.is_main_process:
        with writing_errors(final):
            save_checkpoint(models, final, None if memory is None else _copied(memory))
    accelerator.wait_for_everyone()
    return final


def _keeps_memory(recipe: Recipe) -> bool:
    """Whether the recipe leaves all weights alone that a memory is written and read with."""
    return recipe.world_model is None and _keeps_latents(recipe)


def _keeps_latents(recipe: Recipe) -> bool:
    """Whether the recipe leaves the encoder alone."""
    return recipe.autoencoder is None or recipe.autoencoder.decoder_only


def _leave_out_misfits(models: Models, recipe: Recipe, tell: bool) -> None:
    """Drop the heads that read latents which are about to change, unless they learn on."""
    if _keeps_latents(recipe):
        return
    for name in (OUTCOME_HEAD_FOLDER, TEMPORAL_DISTANCE_FOLDER):
        if getattr(models, name) is not None and getattr(recipe, name) is None:
            setattr(models, name, None)
            if tell:
                logger.warning(
                    "the %s does not fit the encoder that this recipe trains and is left out of "
                    "the new checkpoint; add %s: to the recipe to train it on",
                    name.replace("_", " "),
                    name,
                )


def _copied(memory: Path) -> Callable[[Path], None]:
    """A function that puts a copy of a memory's folder into a checkpoint."""

    def copy(folder: Path) -> None:
        shutil.copytree(memory, folder / MEMORY_FOLDER)

    return copy


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


def check_model(model: VideoWorldModel, store: EpisodeStore) -> None:
    """Refuse a store that a trained model can't go on learning from."""
    spec, side = store.spec, model.config.image_size
    if spec.image_size != (side, side):
        raise SfvgenError(
            f"the store {store.path} has images of {spec.image_size[0]}x{spec.image_size[1]}, but "
            f"the model imagines {side}x{side}; collect again with --image-size {side}"
        )
    if spec.frame_skip != model.config.frame_skip:
        raise SfvgenError(
            f"the store {store.path} has {spec.frame_skip} environment steps per frame, but the "
            f"model's frames are {model.config.frame_skip} apart; collect again with --frame-skip "
            f"{model.config.frame_skip}"
        )
    bounds = (list(spec.action_low), list(spec.action_high))
    if bounds != (list(model.config.action_low), list(model.config.action_high)):
        raise SfvgenError(
            f"the store {store.path} has {spec.action_size} action numbers between {bounds[0]} and "
            f"{bounds[1]}, but the model has {model.action_size} between "
            f"{model.config.action_low} and {model.config.action_high}; use the model's environment"
        )


def _going_on(recipe: WorldModelRecipe, model: VideoWorldModel) -> WorldModelRecipe:
    """The recipe with a trained model's window, and with what the model was trained to predict.

    Raises:
        SfvgenError: The recipe says that one of them is another.
    """
    own = {
        "num_past_frames": model.config.num_past_frames,
        "num_future_frames": model.config.num_future_frames,
        "prediction": prediction_of(model.scheduler),
    }
    for name, value in own.items():
        asked = getattr(recipe, name)
        if name in recipe.model_fields_set and asked != value:
            raise SfvgenError(
                f"the recipe's world_model has {name}: {asked}, but the model to go on from has "
                f"{value}; leave {name} out, or train from the start without --init-from"
            )
    return recipe.model_copy(update=own)


def count_data(model: VideoWorldModel, store: EpisodeStore, known_episodes: int = 0) -> None:
    """Add a store's steps to those that a model was trained on, where these are known.

    Args:
        model: Counts them in its `data_steps`.
        store: Holds them.
        known_episodes: The store's first episodes, which the model has counted before.
    """
    known: int | None = model.config.data_steps
    if known is not None:
        model.register_to_config(data_steps=known + sum(store.num_steps[known_episodes:]))


def success_ends(store: EpisodeStore) -> bool:
    """Whether the environment has ended an episode of the store in success."""
    ended = (entry.success_array() for entry in store.entries if entry.terminated)
    return any(successes is not None and bool(successes[-1]) for successes in ended)


def _models_to_go_on_from(folder: Path, recipe: Recipe, store: EpisodeStore) -> Models:
    """All that a checkpoint folder or a text-to-video folder holds; what it lacks is made anew.

    Raises:
        SfvgenError: It does not fit the store, or can't go on with this recipe.
    """
    for name, part in (
        ("autoencoder", recipe.autoencoder),
        ("world_model.text", recipe.world_model and recipe.world_model.text),
    ):
        if part and part.pretrained is not None:
            raise SfvgenError(
                f"the recipe has {name}.pretrained, but the model of --init-from has its own; "
                "leave one of them out"
            )
    heads = load_heads(folder)
    if is_world_model(folder):
        model = VideoWorldModel.from_pretrained(folder)
    else:
        model = load_base_model(folder, recipe, store.spec)
    check_model(model, store)
    if recipe.autoencoder is not None and not isinstance(model.vae, AutoencoderKL):
        raise SfvgenError(
            f"the vae of {folder} is a {type(model.vae).__name__}, which is not trained here; "
            "leave autoencoder out of the recipe"
        )
    inverse = heads.inverse_dynamics
    if inverse is None:
        if recipe.inverse_dynamics is None:
            raise SfvgenError(
                f"{folder} holds no inverse dynamics; add inverse_dynamics to the recipe"
            )
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            inverse = build_inverse_dynamics(recipe.inverse_dynamics, store.spec)
    return Models(model, inverse, heads.outcome_head, heads.temporal_distance)


def load_models(folder: Path) -> Models:
    """All that a checkpoint folder holds, in single precision."""
    model, heads = VideoWorldModel.from_pretrained(folder), load_heads(folder)
    inverse_dynamics = required_inverse_dynamics(heads, folder)
    return Models(model, inverse_dynamics, heads.outcome_head, heads.temporal_distance)


def _build_outcome_head(
    recipe: OutcomeHeadRecipe, model: VideoWorldModel, table: FrameTable, success_ends: bool
) -> OutcomeHead:
    """An untrained head that fits the model's latents and tokens and the data's rewards."""
    channels, side, _ = model.latent_size
    spread = float(table.rewards[told_steps(table)].std())
    return OutcomeHead(
        latent_channels=channels,
        latent_side=side,
        vocab_size=len(model.tokenizer),
        hidden_size=recipe.hidden_size,
        num_blocks=recipe.num_blocks,
        # Rewards that are all the same have no spread.
        reward_scale=spread if spread > 0 else 1.0,
        success_ends=success_ends,
    )


def _build_temporal_distance(
    recipe: TemporalDistanceRecipe, model: VideoWorldModel
) -> TemporalDistance:
    """An untrained head that fits the model's latents."""
    channels, side, _ = model.latent_size
    return TemporalDistance(
        latent_channels=channels,
        latent_side=side,
        hidden_size=recipe.hidden_size,
        num_blocks=recipe.num_blocks,
        max_frames=recipe.max_frames,
    )


def _build_models(recipe: Recipe, spec: StoreSpec, instructions: list[str], parts: Parts) -> Models:
    """Models of the recipe's sizes for the store's images and actions."""
    assert recipe.inverse_dynamics is not None
    model = build_world_model(recipe, spec, instructions, parts)
    return Models(model, build_inverse_dynamics(recipe.inverse_dynamics, spec))


def save_checkpoint(
    models: Models, folder: Path, write_more: Callable[[Path], None] | None = None
) -> None:
    """Write all models in half precision, and a model card, under a temporary name, then rename.

    Args:
        models: What to write.
        folder: Where to; what is there already is replaced.
        write_more: Called with the temporary folder, for what belongs to the checkpoint besides.
    """
    model = models.world_model
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    heads = {
        INVERSE_DYNAMICS_FOLDER: models.inverse_dynamics,
        OUTCOME_HEAD_FOLDER: models.outcome_head,
        TEMPORAL_DISTANCE_FOLDER: models.temporal_distance,
    }
    modules = [model.vae, model.text_encoder, model.unet, *filter(None, heads.values())]
    for module in modules:
        # Not the module's own `to`, which warns of layers that these models do not have.
        torch.nn.Module.to(module, torch.float16)
    model.save_pretrained(temporary)
    for name, head in heads.items():
        if head is not None:
            head.save_pretrained(temporary / name)
    if write_more is not None:
        write_more(temporary)
    forget_origin(temporary)
    write_model_card(temporary, model.config)
    write_manifest(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    for module in modules:
        torch.nn.Module.to(module, torch.float32)
