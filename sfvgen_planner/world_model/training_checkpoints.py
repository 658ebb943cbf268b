"""The checkpoints of a run in training: written in one go, and gone on from exactly."""

import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.files import writing_errors
from sfvgen_planner.world_model.draw_batch import DrawBatch, gather_draws, load_draws
from sfvgen_planner.world_model.recipe import Optimisation
from sfvgen_planner.world_model.sharding import gather, local_part, scatter, sharded_as

logger = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
# Of a checkpoint that does not list them.
_FILES = ("model", "ema", "optimiser")
_NAME = re.compile(r"checkpoint-\d{8}")


class _DamagedError(Exception):
    """A checkpoint's file can be read, but holds nothing that was written there."""


_DAMAGE = (
    FileNotFoundError,
    UnicodeDecodeError,
    json.JSONDecodeError,
    SafetensorError,
    _DamagedError,
)


def found_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a stage in the order of their steps; what is named otherwise is none."""
    return sorted(
        path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()
    )


def begun_stages(out: Path) -> list[Path]:
    """The folders of a run's stages that have checkpoints."""
    return [folder for folder in sorted(out.glob("*")) if found_checkpoints(folder)]


@dataclass(frozen=True)
class TrainingCheckpoints:
    """The checkpoints `checkpoint-*` of one run, and all that they keep of it.

    Attributes:
        folder: Where they are.
        module: What is trained, as FSDP has it where it shards.
        optimiser: AdamW of the trained parameters, in the module's order.
        ema: The averages of the trained parameters' local parts, in the module's order.
        draw_batch: What draws the batches; the state of a `StatefulDraw` is kept.
        accelerator: The run's processes, all of which must call a method together.
    """

    folder: Path
    module: nn.Module
    optimiser: Any
    ema: EMAModel
    draw_batch: DrawBatch
    accelerator: Accelerator

    def save(self, step: int, optimisation: Optimisation) -> None:
        """Write one checkpoint under a temporary name, rename it, then drop the oldest ones.

        Args:
            step: Steps that are done.
            optimisation: Its settings, for the record.

        Raises:
            SfvgenError: It can't be written.
        """
        tensors = self._tensors()
        if self.accelerator.is_main_process:
            with writing_errors(self.folder):
                self._write(step, tensors, optimisation)

    def resume(self) -> int:
        """Load the newest whole checkpoint, if there is one; the step to go on from.

        Raises:
            SfvgenError: It is another model's.
        """
        for checkpoint in reversed(found_checkpoints(self.folder)):
            try:
                return self._load(checkpoint)
            except _DAMAGE as error:
                logger.warning("%s is damaged (%s) and left out", checkpoint, error)
            except (OSError, KeyError, ValueError, RuntimeError) as error:
                raise SfvgenError(
                    f"{checkpoint} does not fit this recipe's model; train into another --out "
                    "folder, or delete that checkpoint"
                ) from error
        return 0

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """What the files hold, whole, on the main process."""
        keep = self.accelerator.is_main_process
        parameters = self._trained()
        names = list(parameters)
        averages = {
            name: sharded_as(average, parameters[name])
            for name, average in zip(names, self.ema.shadow_params, strict=True)
        }
        moments = {}
        for index, values in self.optimiser.state_dict()["state"].items():
            for key, value in values.items():
                moments[f"{names[index]}/{key}"] = torch.as_tensor(value)
        tensors = {
            "model": gather(self.module.state_dict(), keep),
            "ema": gather(averages, keep),
            "optimiser": gather(moments, keep),
        }
        if draws := gather_draws(self.draw_batch, self.accelerator):
            tensors["draws"] = draws
        return tensors

    def _write(
        self, step: int, tensors: dict[str, dict[str, Tensor]], optimisation: Optimisation
    ) -> None:
        temporary, final = self.folder / "checkpoint.tmp", self.folder / f"checkpoint-{step:08d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, values in tensors.items():
            contiguous = {key: value.contiguous() for key, value in values.items()}
            save_file(contiguous, temporary / f"{name}.safetensors")
        state = {"step": step, "files": list(tensors), "optimisation": optimisation.model_dump()}
        (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n")
        found = found_checkpoints(self.folder)
        older = [path for path in found if path.name < final.name]
        # A checkpoint of this or a later step was too damaged to go on from; left there, it would
        # take the place of a good one.
        for damaged in found[len(older) :]:
            shutil.rmtree(damaged)
        temporary.rename(final)
        for old in older[: 1 - KEPT_CHECKPOINTS]:
            # Half-deleted, it must not look like a checkpoint.
            old.rename(temporary)
            shutil.rmtree(temporary)

    def _load(self, checkpoint: Path) -> int:
        """Load one checkpoint, all of its files or none; its step."""
        state = json.loads((checkpoint / "state.json").read_text())
        if not (isinstance(state, dict) and "step" in state):
            raise _DamagedError(f"state.json holds {state!r}")
        files = {
            name: load_file(checkpoint / f"{name}.safetensors")
            for name in state.get("files", _FILES)
        }
        weights, shadow, moments = (files[name] for name in _FILES)
        present = self.module.state_dict()
        self.module.load_state_dict({k: scatter(value, present[k]) for k, value in weights.items()})
        parameters = self._trained()
        names = list(parameters)
        averages = (scatter(shadow[name], p) for name, p in parameters.items())
        self.ema.shadow_params = [local_part(average) for average in averages]
        self.ema.optimization_step = state["step"]
        packed: dict[int, dict[str, Tensor]] = {}
        for key, value in moments.items():
            name, moment = key.rsplit("/", 1)
            # AdamW keeps its step counter whole, and on the CPU unless it is fused.
            moved = value if moment == "step" else scatter(value, parameters[name])
            packed.setdefault(names.index(name), {})[moment] = moved
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": packed, "param_groups": groups})
        load_draws(self.draw_batch, files.get("draws", {}), self.accelerator)
        return int(state["step"])
