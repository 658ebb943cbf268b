"""TEMP-LoRA, the fast weights of one episode (paper section 3.2, Eq. 3, Algorithm 1a)."""

import json
import time
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import VideoWorldModel
from sfvgen_planner.world_model.objective import add_noise, draw_timesteps, target
from sfvgen_planner.world_model.pipeline import use_trainable_attention

# Diffusers' names of what mixes frames, in the UNet (attention and convolutions over time, without
# the convolutions' norms, activations and dropouts) and in the transformer (its temporal blocks).
# Neither class has the other's names, so one regex serves both.
_ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)"
TEMPORAL_LAYERS = (
    rf"(.*(temp_attentions|transformer_in)\..*{_ATTENTION}"
    r"|.*temp_convs\.\d+\.(conv1\.2|conv[234]\.3)"
    rf"|temporal_transformer_blocks\.\d+\.({_ATTENTION}|ff\.net\.(0\.proj|2)))"
)

_SETTINGS_FILE = "memory.json"
_COUNTER = "num_writes"


@dataclass(frozen=True)
class MemoryWrite:
    """What one write did.

    Attributes:
        loss_before: Denoising loss of the chunk under the fast weights before the write.
        loss_after: The same noise's loss afterwards; lower means that it learnt.
        seconds: Wall-clock time of the write.
    """

    loss_before: float
    loss_after: float
    seconds: float


class EpisodicMemory:
    """Low-rank adapters on a world model's temporal layers, learnt while an episode happens.

    Attached to the model from construction until `detach`. Each `write` noises the previous
    chunk and the chunk together, with no clean frame, no text and no action, and takes a few
    optimiser steps on the denoising loss of the whole sequence; only the adapters change. They
    carry over from chunk to chunk; `reset` starts a new episode.

    Args:
        world_model: The model whose `unet` gets the adapters; its own weights are frozen.
        rank: Rank of the adapters (paper: 32).
        learning_rate: Adam's rate (paper: 1e-4).
        num_steps: Optimiser steps per write.
        num_noise_draws: Noise levels averaged in each optimiser step.
        target_modules: Regular expression of the layers to adapt.
        seed: Seed of the adapters' start and of the writes' noise.

    Raises:
        SfvgenError: A setting is out of range, the regular expression matches no layer, or the
            model has a memory already.
    """

    def __init__(
        self,
        world_model: VideoWorldModel,
        rank: int = 32,
        learning_rate: float = 1e-4,
        num_steps: int = 4,
        num_noise_draws: int = 2,
        target_modules: str = TEMPORAL_LAYERS,
        seed: int = 0,
    ) -> None:
        for name, value in (
            ("rank", rank),
            ("learning_rate", learning_rate),
            ("num_steps", num_steps),
            ("num_noise_draws", num_noise_draws),
        ):
            if not value > 0:
                raise SfvgenError(f"{name} of a memory must be positive, got {value}")
        if any("lora_" in name for name, _ in world_model.unet.named_parameters()):
            raise SfvgenError("this model has a memory already; detach() that one first")
        use_trainable_attention(world_model.unet)
        self.world_model = world_model
        self.learning_rate = learning_rate
        self.num_steps = num_steps
        self.num_noise_draws = num_noise_draws
        self.seed = seed
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=target_modules)
        try:
            self._adapted = get_peft_model(world_model.unet, config)
        except ValueError as error:
            raise SfvgenError(
                f"no layer of the model matches target_modules={target_modules!r}; "
                "give a regular expression of its temporal layers"
            ) from error
        self._parameters = {
            name: parameter
            for name, parameter in self._adapted.named_parameters()
            if "lora_" in name
        }
        self._enabled = True
        self._num_writes = 0
        self.reset()

    # ---------------------------------------------------------------- life of an episode

    def reset(self) -> None:
        """Forget everything: Theta back to its start, which changes nothing in the model."""
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if "lora_B" in name:
                    parameter.zero_()
                else:
                    # LoRA's usual start: uniform with variance 1 / (3 fan_in).
                    bound = parameter[0].numel() ** -0.5
                    values = torch.rand(parameter.shape, generator=generator) * 2 - 1
                    parameter.copy_(bound * values)
        self._num_writes = 0

    def write(self, previous_chunk: np.ndarray | Tensor, chunk: np.ndarray | Tensor) -> MemoryWrite:
        """Fast-learn one chunk (Eq. 3).

        Args:
            previous_chunk: X_i, uint8 `(frames, H, W, 3)` or latents `(channels, frames, h, w)`;
                its last f_p frames count.
            chunk: Y_i, in the same form.

        Raises:
            SfvgenError: A chunk has the wrong type, shape or size.
        """
        start = time.perf_counter()
        past = self._latents(previous_chunk)[:, :, -self.world_model.config.num_past_frames :]
        # Whole-sequence noise: nothing stays clean, so the split only sets the clock's zero.
        num_past = past.shape[2]
        clean = torch.cat([past, self._latents(chunk)], dim=2)
        clean = clean.expand(self.num_noise_draws, -1, -1, -1, -1)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._num_writes)
        states = self.world_model.encode_instructions([""]).to(clean.dtype)
        states = states.expand(self.num_noise_draws, -1, -1)
        probe = self._draw(clean, generator)
        optimiser = torch.optim.Adam(self._parameters.values(), lr=self.learning_rate)
        was_enabled, self.enabled = self._enabled, True
        try:
            loss_before = self._probe_loss(clean, probe, num_past, states)
            for _ in range(self.num_steps):
                loss = self._loss(clean, *self._draw(clean, generator), num_past, states)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            loss_after = self._probe_loss(clean, probe, num_past, states)
        finally:
            self.enabled = was_enabled
            optimiser.zero_grad(set_to_none=True)
        self._num_writes += 1
        return MemoryWrite(loss_before, loss_after, time.perf_counter() - start)

    @property
    def enabled(self) -> bool:
        """Whether the model sees the memory; switching it off keeps what was learnt."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if value:
            self._adapted.base_model.enable_adapter_layers()
        else:
            self._adapted.base_model.disable_adapter_layers()
        self._enabled = value

    def detach(self) -> None:
        """Take the adapters out of the model again; this memory can't be used afterwards."""
        self._adapted.base_model.unload()

    # ---------------------------------------------------------------- state

    def state(self) -> dict[str, Tensor]:
        """A copy of all that `write` changed: PEFT's own tensors and the number of writes."""
        tensors = get_peft_model_state_dict(self._adapted)
        state = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        state[_COUNTER] = torch.tensor(self._num_writes)
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave.

        Raises:
            SfvgenError: The state belongs to another model or rank.
        """
        own = self.state()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if shapes != {name: tuple(tensor.shape) for name, tensor in own.items()}:
            raise SfvgenError(
                "this memory belongs to another model, rank or set of layers; "
                "load it with the settings it was made with"
            )
        tensors = {name: tensor for name, tensor in state.items() if name != _COUNTER}
        set_peft_model_state_dict(self._adapted, tensors)
        self._num_writes = int(state[_COUNTER])

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the memory as a PEFT adapter folder, which `peft` reads too, with its counter."""
        path = Path(folder)
        self._adapted.save_pretrained(str(path))
        settings = {_COUNTER: self._num_writes}
        temporary = path / f"{_SETTINGS_FILE}.tmp"
        temporary.write_text(json.dumps(settings) + "\n")
        temporary.replace(path / _SETTINGS_FILE)

    def load_pretrained(self, folder: str | PathLike[str]) -> None:
        """Read what `save_pretrained` wrote.

        Raises:
            SfvgenError: The folder is missing, broken, or belongs to another model.
        """
        path = Path(folder)
        try:
            tensors = load_file(path / "adapter_model.safetensors")
            counter = json.loads((path / _SETTINGS_FILE).read_text())[_COUNTER]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise SfvgenError(
                f"{path} holds no readable memory ({type(error).__name__}); "
                "give a folder that EpisodicMemory.save_pretrained wrote"
            ) from error
        self.load({**tensors, _COUNTER: torch.tensor(counter)})

    # ---------------------------------------------------------------- the loss

    def _latents(self, chunk: np.ndarray | Tensor) -> Tensor:
        if isinstance(chunk, Tensor) and chunk.is_floating_point():
            return chunk[None].to(self.world_model.device, self.world_model.unet.dtype)
        return self.world_model.encode(chunk[None]).to(self.world_model.unet.dtype)

    def _draw(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Timesteps and noise of one loss evaluation."""
        uniform = torch.rand(len(clean), generator=generator)
        timesteps = draw_timesteps(self.world_model.scheduler, uniform)
        noise = torch.randn(clean.shape, generator=generator)
        return timesteps.to(clean.device), noise.to(clean)

    def _loss(
        self, clean: Tensor, timesteps: Tensor, noise: Tensor, num_past: int, states: Tensor
    ) -> Tensor:
        """Eq. 3: the denoising loss of the whole sequence, without any condition."""
        scheduler = self.world_model.scheduler
        prediction = self.world_model.denoise(
            add_noise(scheduler, clean, noise, timesteps),
            timesteps,
            num_past,
            states,
            context_given=clean.new_zeros(len(clean)),
        )
        return torch.nn.functional.mse_loss(
            prediction.float(), target(scheduler, clean, noise, timesteps).float()
        )

    @torch.no_grad()
    def _probe_loss(
        self, clean: Tensor, probe: tuple[Tensor, Tensor], num_past: int, states: Tensor
    ) -> float:
        return self._loss(clean, *probe, num_past, states).item()
