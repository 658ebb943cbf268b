"""The adapters of one world model: where memories start, and how they are put in place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.memory.config import MemoryConfig
from sfvgen_planner.memory.layer_codes import ADAPTER, TIME_CODES, LayerCodes
from sfvgen_planner.memory.layers import MemoryConv3d, MemoryLayer, MemoryLinear
from sfvgen_planner.world_model import VideoWorldModel
from sfvgen_planner.world_model.sampling import nothing_to_hear

FastWeights = dict[str, Tensor]
"""The memories' tensors, each `(memories, ...)`, by PEFT's names of what they replace."""

# Weak, because nothing has learnt yet to tell chunks and instructions apart in them.
_NEW_DIRECTIONS = 0.3


def peft_config(world_model: VideoWorldModel, config: MemoryConfig) -> LoraConfig:
    """PEFT's settings of a memory, with which PEFT itself can put its layers into the model.

    With a position code this runs the denoiser once, to see how many cells each layer sees.
    """
    settings = LoraConfig(
        r=config.rank, lora_alpha=config.rank, target_modules=config.target_modules
    )
    settings._register_custom_module({nn.Linear: MemoryLinear, nn.Conv3d: MemoryConv3d})
    # Not fields, or PEFT would write them into its file.
    settings.memory = config
    if config.instruction_code:
        settings.text_size = world_model.text_encoder.config.hidden_size
    if config.position_code:
        _count_cells(world_model)
    if config.num_time_slots:
        settings.latent_size = world_model.latent_size[1:]
    return settings


@torch.no_grad()
def _count_cells(world_model: VideoWorldModel) -> None:
    """Note in each linear layer how many rows one sample gives it."""
    unet = world_model.unet
    linears = [module for module in unet.modules() if isinstance(module, nn.Linear)]
    hooks = [
        module.register_forward_pre_hook(
            lambda module, inputs: setattr(module, "num_cells", len(inputs[0]))
        )
        for module in linears
    ]
    channels, height, width = world_model.latent_size
    text_size = world_model.text_encoder.config.hidden_size
    blank = torch.zeros((), device=unet.device, dtype=unet.dtype)
    try:
        world_model.denoise(
            blank.expand(1, channels, 2, height, width),
            blank.expand(1),
            1,
            blank.expand(1, 1, text_size),
        )
    finally:
        for hook in hooks:
            hook.remove()


def _grown(name: str, trained: Tensor, fresh: Tensor) -> Tensor:
    """Trained values in the first rows and columns of fresh ones."""
    if name.endswith(TIME_CODES):
        # Chunks beyond the codes had the last one.
        trained = trained[torch.arange(len(fresh)).clamp(max=len(trained) - 1)]
    grown = _NEW_DIRECTIONS * fresh.to(trained)
    grown[tuple(map(slice, trained.shape))] = trained
    return grown


def slow_weights(unet: nn.Module) -> dict[str, Tensor]:
    """All that memories are read with, by name: the slow weights, and what is slow of adapters.

    Where a memory has both factors of the adapters for itself, as the paper's, an attached one
    leaves them as they are without.
    """
    fast = tuple(
        f"{name}.{factor}."
        for name, layer in unet.named_modules()
        if isinstance(layer, MemoryLayer)
        for factor in layer.fast_factors
    )
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in unet.state_dict().items()
        if not name.startswith(fast)
    }


class Adapters:
    """The adapters of one world model.

    Args:
        world_model: Its `unet` gets the adapters, which change nothing until memories are placed.
        config: The adapters' size, layers and codes.
        seed: Seed of A and of the position code.

    Raises:
        SfvgenError: `target_modules` matches no layer, or the model has adapters already.
    """

    def __init__(self, world_model: VideoWorldModel, config: MemoryConfig, seed: int = 0) -> None:
        unet = world_model.unet
        if any(isinstance(module, LoraLayer) for module in unet.modules()):
            raise SfvgenError("this model has a memory already; detach() that one first")
        self.config = config
        try:
            # In the model's precision: a layer should not cast what it reads.
            self._peft: PeftModel = get_peft_model(
                unet, peft_config(world_model, config), autocast_adapter_dtype=False
            )
        except SfvgenError:
            raise
        except ValueError as error:
            raise SfvgenError(
                f"no layer of the model matches target_modules={config.target_modules!r}; "
                "give a regular expression of its temporal layers"
            ) from error
        self._layers = {
            name: module
            for name, module in self._peft.named_modules()
            if isinstance(module, MemoryLayer)
        }
        self._world_model = world_model
        world_model.memory_layers = tuple(self._layers.values())
        self._codes: LayerCodes | None = None
        self._hooks: tuple[RemovableHandle, ...] = ()
        if config.num_time_codes or config.instruction_code:
            layers = self._layers.values()
            self._codes = LayerCodes([x for x in layers if isinstance(x, MemoryLinear)])
            world_model.hear = self._codes.hear
            self._hooks = (
                unet.register_forward_pre_hook(self._codes.listen, with_kwargs=True),
                unet.register_forward_hook(self._codes.forget, always_call=True),
            )
        self._draw(seed)

    @torch.no_grad()
    def _draw(self, seed: int) -> None:
        """The start, the same on every device: A as LoRA's, B zero."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self._layers.values():
            a = layer.lora_A[ADAPTER].weight
            # LoRA's usual start: uniform with variance 1 / (3 fan_in).
            bound = a[0].numel() ** -0.5
            a.copy_(bound * (torch.rand(a.shape, generator=generator) * 2 - 1))
            for code in getattr(layer, "lora_position_code", {}).values():
                code.copy_(torch.randn(code.shape, generator=generator))

    @property
    def unet(self) -> nn.Module:
        """The denoiser that has, or had, the adapters."""
        unet: nn.Module = self._world_model.unet
        return unet

    def parameters(self) -> Iterator[nn.Parameter]:
        """A, the start of B, and the codes: what the slow-fast loop learns."""
        for name, parameter in self._peft.named_parameters():
            if "lora_" in name:
                yield parameter

    def freeze(self) -> None:
        """Learn no more, so that the denoiser reads the codes of all layers from one place."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        if self._codes is not None:
            self._codes.freeze()

    def start(self, num_memories: int) -> FastWeights:
        """The fast weights of fresh memories; gradients reach the parameters they start at."""
        fast = {}
        for name, layer in self._layers.items():
            for key, start in layer.starts().items():
                fast[f"{name}.{key}"] = start.expand(num_memories, *start.shape)
        return fast

    def place(self, fast: Mapping[str, Tensor] | None, chunks: Tensor | None = None) -> None:
        """Let the model see these memories, or none.

        Args:
            fast: What `start` gives, or learnt from it.
            chunks: `(memories,)`, the number of chunks that each has written.
        """
        if self._codes is not None:
            # A graph must not outlive its step.
            self._codes.clear()
        for name, layer in self._layers.items():
            if fast is None:
                layer.place(None, None, None)
            else:
                layer.place(
                    fast.get(f"{name}.lora_A.weight"),
                    fast[f"{name}.lora_B.weight"],
                    chunks,
                    fast.get(f"{name}.lora_table"),
                )

    @contextmanager
    def placed(self, fast: Mapping[str, Tensor], chunks: Tensor) -> Iterator[None]:
        """Let the model see these memories for a while, and none afterwards."""
        self.place(fast, chunks)
        try:
            yield
        finally:
            self.place(None)

    def tensors(self) -> dict[str, Tensor]:
        """The slow parameters under PEFT's names."""
        state: dict[str, Tensor] = get_peft_model_state_dict(self._peft)
        return state

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        set_peft_model_state_dict(self._peft, tensors)

    def load_smaller(self, tensors: dict[str, Tensor]) -> None:
        """Go on from adapters of the same layers with a lower rank or fewer time codes.

        Fresh memories change nothing of what they changed.
        """
        own = self.tensors()
        self.load({name: _grown(name, value, own[name]) for name, value in tensors.items()})

    def peft_settings(self) -> LoraConfig:
        """PEFT's own settings, for its `adapter_config.json`."""
        return self._peft.peft_config[ADAPTER]

    def detach(self) -> None:
        """Take the adapters out of the model again."""
        for hook in self._hooks:
            hook.remove()
        self._peft.base_model.unload()
        self._world_model.memory_layers, self._world_model.hear = (), nothing_to_hear
