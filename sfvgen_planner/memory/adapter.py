"""Low-rank adapters of which many memories share one batch, with codes in their bottleneck.

They are LoRA layers of PEFT with a variant of their own (`LoraVariant`): what PEFT keeps as
parameters (A, B and the codes) is where every memory starts, and the memories themselves are
stacked tensors `(memories, ...)` that a layer is given by `Adapters.place`. A batch of `N * S`
samples then has N memories of S samples each, in order, and costs one batched matrix product.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Conv3d as LoraConv3d
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraVariant
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.memory.config import MemoryConfig
from sfvgen_planner.world_model import VideoWorldModel

logger = logging.getLogger(__name__)

FastWeights = dict[str, Tensor]
"""The memories' tensors, each `(memories, ...)`, by PEFT's names of what they replace."""

_ADAPTER = "default"
_TIME_CODES = ("lora_time_scale", "lora_time_shift")
_INSTRUCTION_CODES = ("lora_instruction_scale", "lora_instruction_shift")
_CODES = ("lora_position_code", *_TIME_CODES, *_INSTRUCTION_CODES)


class LayerCodes:
    """What chunk indices and instructions give all layers of the denoiser for its present batch.

    They are found for all layers at once: layer by layer, their many small kernels would cost more
    than the memory's own products.

    Attributes:
        of_layer: for each layer `1 + W` and C, `(groups, 1, r)` each, for equal shares of the
            batch; None at other times.
    """

    of_layer: list[tuple[Tensor, Tensor]] | None = None

    def __init__(self, layers: list["MemoryLinear"]) -> None:
        self._layers = layers
        for index, layer in enumerate(layers):
            layer.codes, layer.code_index = self, index

    def listen(self, unet: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the denoiser works: hear the instructions."""
        placed = next((layer for layer in self._layers if layer.fast_b is not None), None)
        if placed is not None:
            states = kwargs["encoder_hidden_states"].mean(dim=1)
            assert placed.fast_b is not None
            _check_rows(len(states), len(placed.fast_b))
            scale, shift = self._codes(states, placed)[:, :, :, None]
            self.of_layer = list(zip((1 + scale).unbind(), shift.unbind(), strict=True))

    def forget(self, unet: nn.Module, args: Any, output: Any) -> None:
        """Afterwards; but gradient checkpointing computes layers anew while memories are placed."""
        if not torch.is_grad_enabled():
            self.of_layer = None

    def _codes(self, states: Tensor, placed: "MemoryLinear") -> Tensor:
        """W and C `(2, layers, groups, r)` for instructions `(samples, text size)`."""
        codes = None
        if _ADAPTER in placed.lora_time_scale:
            tables = self._stacked(_TIME_CODES)
            assert placed.chunks is not None
            codes = tables[:, :, placed.chunks.clamp(max=tables.shape[2] - 1)]
        if _ADAPTER in placed.lora_instruction_scale:
            matrices = self._stacked(_INSTRUCTION_CODES)
            told = (states.to(matrices.dtype) @ matrices).to(matrices.dtype)
            if codes is None:
                return told
            codes = told + codes.repeat_interleave(told.shape[2] // codes.shape[2], dim=2)
        assert codes is not None
        return codes

    def _stacked(self, names: tuple[str, str]) -> Tensor:
        """The layers' codes of these two names, `(2, layers, ..., r)`."""
        tables = [getattr(layer, name)[_ADAPTER] for name in names for layer in self._layers]
        return torch.stack(tables).unflatten(0, (len(names), -1))


class _MemoryLayer(LoraLayer):
    """What both kinds of layers share: the memories in place.

    Attributes:
        fast_factors: PEFT's names of the factors that memories replace.
        fast_a: `(memories, r, in, ...)`, or None where A is the slow one.
        fast_b: `(memories, out, r, ...)`, or None while no memory is in place: the layer then is
            the slow model's.
        chunks: `(memories,)`, each one's chunk index.
    """

    fast_factors: tuple[str, ...] = ()
    fast_a: Tensor | None = None
    fast_b: Tensor | None = None
    chunks: Tensor | None = None

    def place(self, fast_a: Tensor | None, fast_b: Tensor | None, chunks: Tensor | None) -> None:
        self.fast_a, self.fast_b, self.chunks = fast_a, fast_b, chunks


class MemoryLinear(LoraLinear, _MemoryLayer):
    """A linear layer with `B_n ((A h + P[cell]) * (1 + W) + C)` for memory n.

    W and C are the sums of what its chunk index and the sample's instruction give them.

    Attributes:
        codes: W and C of all layers, or None where there are none.
        code_index: This layer's among them.
    """

    adapter_layer_names = (*LoraLayer.adapter_layer_names, *_CODES)
    codes: LayerCodes | None = None
    code_index: int = 0

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant:
        return _LinearVariant()


class MemoryConv3d(LoraConv3d, _MemoryLayer):
    """A convolution over time with `B_n A_n h` for memory n."""

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant:
        return _ConvVariant()


class _LinearVariant(LoraVariant):
    @staticmethod
    def init(module: LoraLayer, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        module.fast_factors = config.memory.fast_factors
        codes = _code_tables(module, config)
        for name in _CODES:
            values = {adapter_name: nn.Parameter(codes[name])} if name in codes else {}
            setattr(module, name, nn.ParameterDict(values))

    @staticmethod
    def forward(
        module: MemoryLinear, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        fast_b = module.fast_b
        if fast_b is None:
            return result
        memories = len(fast_b)
        _check_rows(len(x), memories)
        if module.fast_a is None:
            hidden = module.lora_A[active_adapter](x)
        else:
            hidden = _products(x, module.fast_a)
        hidden = _coded(module, active_adapter, hidden)
        # Result and product in one kernel: a step is bound by the number of its kernels. PEFT keeps
        # adapters in single precision where the model has half.
        return torch.baddbmm(
            result.reshape(memories, -1, result.shape[-1]),
            hidden.reshape(memories, -1, hidden.shape[-1]).to(result.dtype),
            fast_b.transpose(1, 2).to(result.dtype),
        ).reshape(result.shape)


def _coded(module: MemoryLinear, adapter: str, hidden: Tensor) -> Tensor:
    """`(A h + P[cell]) * (1 + W) + C` of `A h` `(rows, frames, r)`, with the codes there are."""
    position = module.lora_position_code.get(adapter)
    if module.codes is None:
        if position is None:
            return hidden
        return hidden.unflatten(0, (-1, len(position))) + position[:, None]
    assert module.codes.of_layer is not None
    scale, bias = module.codes.of_layer[module.code_index]
    if position is not None:
        bias = torch.addcmul(bias, position, scale)
    groups, cells = bias.shape[:2]
    grouped = hidden.reshape(groups, -1, cells, *hidden.shape[1:])
    return torch.addcmul(bias[:, None, :, None], grouped, scale[:, :, None, None])


class _ConvVariant(LoraVariant):
    @staticmethod
    def init(module: LoraLayer, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        require(
            config.memory.rule == "adam" and not config.memory.is_coded,
            "a convolution has no codes in its bottleneck, and its A and B learn with Adam; "
            "choose target_modules without convolutions",
        )
        module.fast_factors = config.memory.fast_factors

    @staticmethod
    def forward(
        module: MemoryConv3d, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        fast_a, fast_b = module.fast_a, module.fast_b
        if fast_a is None or fast_b is None:
            return result
        _check_rows(len(x), len(fast_b))
        base = module.get_base_layer()
        hidden = _grouped_convolution(x, fast_a, base.stride, base.padding)
        return result + _grouped_convolution(hidden, fast_b).to(result.dtype)


def _products(x: Tensor, weights: Tensor) -> Tensor:
    """`weights[n] @ x` for the n-th share of the rows; `(rows, ..., out)`."""
    stacked = x.reshape(len(weights), -1, x.shape[-1])
    return torch.bmm(stacked, weights.transpose(1, 2)).reshape(*x.shape[:-1], -1)


def _grouped_convolution(x: Tensor, weights: Tensor, stride: Any = 1, padding: Any = 0) -> Tensor:
    """Each memory's convolution of its share of the samples: one group of channels for each."""
    memories = len(weights)
    grouped = x.unflatten(0, (memories, -1)).transpose(0, 1).flatten(1, 2)
    out = F.conv3d(grouped, weights.flatten(0, 1), None, stride, padding, groups=memories)
    return out.unflatten(1, (memories, -1)).transpose(0, 1).flatten(0, 1)


def _check_rows(rows: int, memories: int) -> None:
    require(
        rows % memories == 0,
        f"{memories} memories need a batch of as many samples for each, in order of the memories",
    )


def _code_tables(module: LoraLayer, config: LoraConfig) -> dict[str, Tensor]:
    """The codes' start: places all differ at once, chunks and instructions begin alike."""
    memory: MemoryConfig = config.memory
    tables = {}
    weight = module.get_base_layer().weight
    if memory.position_code:
        tables["lora_position_code"] = torch.randn(module.get_base_layer().num_cells, memory.rank)
    if memory.num_time_codes:
        for name in _TIME_CODES:
            tables[name] = torch.zeros(memory.num_time_codes, memory.rank)
    if memory.instruction_code:
        for name in _INSTRUCTION_CODES:
            tables[name] = torch.zeros(config.text_size, memory.rank)
    return {name: table.to(weight) for name, table in tables.items()}


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


def slow_weights(unet: nn.Module) -> dict[str, Tensor]:
    """All that memories are read with, by name: the slow weights, and what is slow of adapters.

    Where a memory has both factors of the adapters for itself, as the paper's, an attached one
    leaves them as they are without.
    """
    fast = tuple(
        f"{name}.{factor}."
        for name, layer in unet.named_modules()
        if isinstance(layer, _MemoryLayer)
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
            self._peft: PeftModel = get_peft_model(unet, peft_config(world_model, config))
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
            if isinstance(module, _MemoryLayer)
        }
        self._codes: LayerCodes | None = None
        self._hooks: tuple[RemovableHandle, ...] = ()
        if config.num_time_codes or config.instruction_code:
            layers = self._layers.values()
            self._codes = LayerCodes([x for x in layers if isinstance(x, MemoryLinear)])
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
            a = layer.lora_A[_ADAPTER].weight
            # LoRA's usual start: uniform with variance 1 / (3 fan_in).
            bound = a[0].numel() ** -0.5
            a.copy_(bound * (torch.rand(a.shape, generator=generator) * 2 - 1))
            for code in getattr(layer, "lora_position_code", {}).values():
                code.copy_(torch.randn(code.shape, generator=generator))

    def parameters(self) -> Iterator[nn.Parameter]:
        """A, the start of B, and the codes: what the slow-fast loop learns."""
        for name, parameter in self._peft.named_parameters():
            if "lora_" in name:
                yield parameter

    def start(self, num_memories: int) -> FastWeights:
        """The fast weights of fresh memories; gradients reach the parameters they start at."""
        fast = {}
        for name, layer in self._layers.items():
            for factor in layer.fast_factors:
                weight = getattr(layer, factor)[_ADAPTER].weight
                fast[f"{name}.{factor}.weight"] = weight.expand(num_memories, *weight.shape)
        return fast

    def place(self, fast: Mapping[str, Tensor] | None, chunks: Tensor | None = None) -> None:
        """Let the model see these memories, or none.

        Args:
            fast: What `start` gives, or learnt from it.
            chunks: `(memories,)`, the number of chunks that each has written.
        """
        if self._codes is not None:
            # A graph must not outlive its step.
            self._codes.of_layer = None
        for name, layer in self._layers.items():
            if fast is None:
                layer.place(None, None, None)
            else:
                layer.place(
                    fast.get(f"{name}.lora_A.weight"), fast[f"{name}.lora_B.weight"], chunks
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

    def peft_settings(self) -> LoraConfig:
        """PEFT's own settings, for its `adapter_config.json`."""
        return self._peft.peft_config[_ADAPTER]

    def detach(self) -> None:
        """Take the adapters out of the model again."""
        for hook in self._hooks:
            hook.remove()
        self._peft.base_model.unload()
