"""One training loop for every stage: Accelerate, EMA, atomic checkpoints, exact resume."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.files import writing_errors
from sfvgen_planner.world_model.captured_step import CapturedStep
from sfvgen_planner.world_model.draw_batch import DrawBatch
from sfvgen_planner.world_model.kernels import use_channels_last
from sfvgen_planner.world_model.metrics_log import Metrics, MetricsLog
from sfvgen_planner.world_model.recipe import MixedPrecision, Optimisation
from sfvgen_planner.world_model.sharding import (
    WholeModule,
    is_sharding,
    local_part,
    prepare_plugin,
    whole_tensor,
)
from sfvgen_planner.world_model.training_checkpoints import TrainingCheckpoints

LOG_EVERY = 50
"""Steps between two records of the metrics, each a mean over these steps."""

STOP_EVERY = 10
"""Steps between two looks of all processes at each other's wish to stop."""

_MAX_PROCESSES = 1_009


class Evaluation(NamedTuple):
    """What is measured while training goes on.

    Attributes:
        every: Steps between two evaluations; there is one more after the last step.
        evaluate: Called with the step, on the main process only, while the averaged (EMA) weights
            are in the module; must leave the module and the global random numbers as they are.
    """

    every: int
    evaluate: Callable[[int], Metrics]


def begin_training(seed: int, mixed_precision: MixedPrecision) -> Accelerator:
    """Seed this process; find its device, and DDP or FSDP, as Accelerate's launcher asks for.

    Raises:
        SfvgenError: Accelerate's config asks for a kind of FSDP that would not train exactly.
    """
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        # Without this, several processes on a machine without a GPU each train alone.
        cpu=not torch.accelerator.is_available(),
    )
    if is_sharding(accelerator):
        prepare_plugin(accelerator.state.fsdp_plugin)
    if accelerator.device.type == "cuda":
        # One graph for all processes' gradients: they are too few to be worth splitting it.
        torch._dynamo.config.optimize_ddp = False
    return accelerator


def train(
    module: nn.Module,
    draw_batch: DrawBatch,
    optimisation: Optimisation,
    folder: Path,
    accelerator: Accelerator,
    seed: int,
    description: str,
    evaluation: Evaluation | None = None,
) -> None:
    """Train `module` in place and leave its averaged (EMA) weights in it.

    Every random number of a step comes from a generator seeded with (seed, step, process), and
    checkpoints keep what a `StatefulDraw` carries from step to step, so a run that is stopped and
    resumed on as many processes equals one that was not.

    Args:
        module: Called as `module(*draw_batch(generator))`; returns the scalar loss.
        draw_batch: Draws one process's batch; all its randomness comes from the generator.
        optimisation: Steps, rates and so on.
        folder: Where checkpoints, `metrics.jsonl` and TensorBoard events go; the newest whole
            checkpoint found there is resumed.
        accelerator: Device, processes and precision.
        seed: Seed of the run.
        description: Name on the progress bar.
        evaluation: Further metrics for the log.

    Raises:
        KeyboardInterrupt: The run was interrupted, after its checkpoint was written. Several
            processes stop together once one of them was, `STOP_EVERY` steps later at most.
        SfvgenError: A checkpoint in `folder` belongs to another model, the loss or the gradient is
            not finite, or `folder` can't be written any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module.to(accelerator.device)
    on_gpu = accelerator.device.type == "cuda"
    # FSDP takes weights in their usual order only.
    if on_gpu and not is_sharding(accelerator):
        use_channels_last(module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters,
        lr=optimisation.learning_rate,
        weight_decay=optimisation.weight_decay,
        fused=on_gpu,
    )
    # The shapes repeat, so cuDNN may search for its fastest algorithms.
    torch.backends.cudnn.benchmark = True
    whole = WholeModule(module)
    # A graph would not hold FSDP's communication.
    capturing = optimisation.capture and on_gpu and not is_sharding(accelerator)
    if capturing:
        # DDP keeps nodes of the gradients alive on its stream, which cannot be captured.
        wrapped, optimiser = module, accelerator.prepare(optimiser)
    else:
        wrapped, optimiser = accelerator.prepare(module, optimiser)
    whole.release()
    # FSDP has replaced them.
    parameters = [p for p in module.parameters() if p.requires_grad]
    local = [local_part(p) for p in parameters]
    ema = EMAModel(local, decay=optimisation.ema_decay, foreach=True)
    checkpoints = TrainingCheckpoints(folder, module, optimiser, ema, draw_batch, accelerator)
    step = checkpoints.resume()
    wrapped.train()
    captured = CapturedStep(module, parameters, accelerator.autocast) if capturing else None
    generator = torch.Generator(device=accelerator.device)
    samples_per_step = optimisation.batch_size * accelerator.num_processes
    recent: list[Tensor] = []
    progress = tqdm(
        total=optimisation.steps,
        initial=step,
        desc=description,
        unit="step",
        disable=not accelerator.is_main_process,
    )
    log = MetricsLog(folder, step, enabled=accelerator.is_main_process)
    with progress, log, _stop_on_interrupt() as stop:
        since = time.perf_counter()
        while step < optimisation.steps:
            generator.manual_seed(_step_seed(seed, step, accelerator.process_index))
            rate = optimisation.learning_rate * learning_rate_factor(step, optimisation)
            for group in optimiser.param_groups:
                group["lr"] = rate
            batch = draw_batch(generator)
            if captured is None:
                with accelerator.autocast():
                    loss = wrapped(*batch)
                accelerator.backward(loss)
            else:
                loss = captured(batch)
                _average_gradients(parameters, accelerator)
            norm = whole_tensor(accelerator.clip_grad_norm_(parameters, optimisation.max_grad_norm))
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            ema.step(local)
            step += 1
            progress.update()
            recent.append(torch.stack([loss.detach().float(), norm.float()]))
            is_last = step == optimisation.steps
            metrics: dict[str, Any] = {}
            if step % LOG_EVERY == 0 or is_last:
                mean_loss, mean_norm = _finite_means(recent, accelerator, step, description)
                progress.set_postfix(loss=f"{mean_loss:.4f}")
                now = time.perf_counter()
                metrics |= {
                    "loss": mean_loss,
                    "learning_rate": rate,
                    "gradient_norm": mean_norm,
                    "samples_per_second": len(recent) * samples_per_step / (now - since),
                }
                recent.clear()
                since = now
            if evaluation is not None and (step % evaluation.every == 0 or is_last):
                paused = time.perf_counter()
                with _averaged(module, local, ema), whole.restored():
                    if accelerator.is_main_process:
                        metrics |= evaluation.evaluate(step)
                since += time.perf_counter() - paused
            if metrics:
                with writing_errors(folder):
                    log.write(step, metrics)
            due = step % optimisation.checkpoint_every == 0 or is_last
            stopping = _is_stopping(stop, accelerator, step % STOP_EVERY == 0)
            if due or stopping:
                # A checkpoint is there to go on from.
                _finite_means(recent, accelerator, step, description)
                checkpoints.save(step, optimisation)
            if stopping:
                break
    # All are asked once more: it may have come while the last checkpoint was written, and a
    # launcher ends all processes as soon as one has left.
    if _is_stopping(stop, accelerator, ask_others=True):
        raise KeyboardInterrupt(f"{description} stopped at step {step}")
    ema.copy_to(local)
    whole.restore()
    module.eval()
    # It keeps what it has prepared, with all moments.
    accelerator.free_memory()


def _finite_means(
    recent: list[Tensor], accelerator: Accelerator, step: int, description: str
) -> list[float]:
    """The mean of `recent` losses and of gradient norms over all processes, none for no steps.

    Raises:
        SfvgenError: One of them is not finite; on all processes alike.
    """
    if not recent:
        return []
    means: list[float] = accelerator.reduce(torch.stack(recent).mean(dim=0), "mean").tolist()
    for name, mean in zip(("loss", "gradient"), means, strict=True):
        if not math.isfinite(mean):
            raise SfvgenError(
                f"{description}: the {name} is not finite at step {step}; "
                "lower learning_rate in the recipe and run again to resume"
            )
    return means


def _average_gradients(parameters: list[nn.Parameter], accelerator: Accelerator) -> None:
    """Make the gradients the mean of all processes', as DDP does."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    means = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, means.split(sizes), strict=True):
        gradient.copy_(mean.view_as(gradient))


def learning_rate_factor(step: int, optimisation: Optimisation) -> float:
    """Share of the full learning rate at `step`: linear warm-up, then cosine decay to 0.1."""
    if step < optimisation.warmup_steps:
        return (step + 1) / optimisation.warmup_steps
    decay_steps = max(optimisation.steps - optimisation.warmup_steps, 1)
    progress = min((step - optimisation.warmup_steps) / decay_steps, 1.0)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))


def shared_seed(generator: torch.Generator) -> int:
    """A seed of the step that `train` made `generator` for, the same on all processes."""
    return generator.initial_seed() // _MAX_PROCESSES


def _step_seed(seed: int, step: int, process: int) -> int:
    return (seed * 1_000_003 + step) * _MAX_PROCESSES + process


@contextmanager
def _averaged(module: nn.Module, parameters: list[Tensor], ema: EMAModel) -> Iterator[None]:
    """Put the averaged weights into `module` for a while."""
    ema.store(parameters)
    ema.copy_to(parameters)
    module.eval()
    try:
        yield
    finally:
        ema.restore(parameters)
        module.train()


@contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """Let Ctrl-C or SIGTERM finish the present step, so that the checkpoint is whole."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda *_: stop.set()) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)


def _is_stopping(stop: threading.Event, accelerator: Accelerator, ask_others: bool) -> bool:
    """Whether this step is the last one; the same answer on all processes.

    A process that stopped alone would leave the others waiting for its gradients for ever.
    """
    if accelerator.num_processes == 1:
        return stop.is_set()
    if not ask_others:
        return False
    wishes = torch.tensor(float(stop.is_set()), device=accelerator.device)
    return bool(accelerator.reduce(wishes, "sum") > 0)
