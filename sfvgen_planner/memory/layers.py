"""Layers of which many memories share one batch, with codes in their bottleneck.

They are LoRA layers of PEFT with a variant of their own (`LoraVariant`): what PEFT keeps as
parameters (A, B and the codes) is where every memory starts, and the memories themselves are
stacked tensors `(memories, ...)` that a layer is given. A batch of `N * S` samples then has N
memories of S samples each, in order, and costs one batched matrix product.
"""

import math
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Conv3d as LoraConv3d
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn

from sfvgen_planner.errors import require
from sfvgen_planner.memory.config import MemoryConfig

ADAPTER = "default"
"""PEFT's name of the adapter."""
TIME_CODES = ("lora_time_scale", "lora_time_shift")
_INSTRUCTION_CODES = ("lora_instruction_scale", "lora_instruction_shift")
_SLOT_GATES = "lora_slot_gates"
_INSTRUCTION_GATES = ("lora_instruction_gates", "lora_age_gates")
_CHANNEL_CODE = "lora_channel_code"
_TABLE = "lora_table"
_CODES = (
    "lora_position_code",
    *TIME_CODES,
    *_INSTRUCTION_CODES,
    _SLOT_GATES,
    *_INSTRUCTION_GATES,
    _CHANNEL_CODE,
    _TABLE,
)
# At more a first write overshoots, for it changes the adapters too.
_TABLE_SCALE = 2.0


class TableGrid(NamedTuple):
    """The cells of a layer and the entries of its table.

    Attributes:
        height: In cells.
        width: In cells.
        shared: Cells along each side of the square that shares an entry.
    """

    height: int
    width: int
    shared: int

    @classmethod
    def of_layer(cls, num_cells: int, latent_size: tuple[int, int], table_side: int) -> "TableGrid":
        """The grid of a layer that sees the latents at a resolution of its own.

        Args:
            num_cells: Of the layer.
            latent_size: Height and width of the latents.
            table_side: Entries along the longer side of the latents at most.

        Raises:
            SfvgenError: The layer does not see a grid of cells of this shape.
        """
        scale = math.sqrt(math.prod(latent_size) / num_cells)
        height, width = (round(side / scale) for side in latent_size)
        require(
            height * width == num_cells,
            f"a table (num_time_slots) needs layers that see the cells of the latents, but one of "
            f"target_modules sees {num_cells} rows of latents of {latent_size[0]}x{latent_size[1]} "
            "cells; choose layers over time",
        )
        return cls(height, width, math.ceil(max(latent_size) / table_side))

    @property
    def entries(self) -> tuple[int, int]:
        """Rows and columns of the table."""
        return math.ceil(self.height / self.shared), math.ceil(self.width / self.shared)

    def spread(self, read: Tensor) -> Tensor:
        """Give each cell what its entry holds: `(samples, entries, out)` to `(..., cells, out)`."""
        if self.shared == 1:
            return read
        rows, columns = self.entries
        read = read.view(len(read), rows, 1, columns, 1, -1)
        read = read.expand(-1, -1, self.shared, -1, self.shared, -1)
        read = read.flatten(3, 4).flatten(1, 2)
        return read[:, : self.height, : self.width].flatten(1, 2)


class Reading(NamedTuple):
    """A layer and what it reads from memories, as one layer: instructions and memories are given.

    Attributes:
        weight: `(groups, in, out)`, for equal shares of the batch.
        offset: `(groups, 1, cells, 1, out)`.
    """

    weight: Tensor
    offset: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """What `MemoryLinear` gives for `(rows, frames, in)`."""
        groups, cells = len(self.weight), self.offset.shape[2]
        product = torch.bmm(x.reshape(groups, -1, x.shape[-1]), self.weight)
        by_cell = product.view(groups, -1, cells, x.shape[1], product.shape[-1])
        return by_cell.add_(self.offset).view(*x.shape[:-1], -1)


class LayerCodes:
    """What chunk indices and instructions give all layers of the denoiser for its present batch.

    They are found for all layers at once: layer by layer, their many small kernels would cost more
    than the memory's own products.

    Attributes:
        of_layer: for each layer its scale `1 + W`, `(groups, 1, 1, 1, r)`, and its bias
            `P * (1 + W) + C`, `(groups, 1, cells, 1, r)`, for equal shares of the batch; None at
            other times.
        gates: for each layer how far each sample opens the slots of its memory's table,
            `(samples, slots)`; None where there are no tables, and at other times.
        channels: for each layer how much each sample attends to the channels of what it reads
            there, `1 + U`, `(samples, 1, out)`; None as the gates.
        readings: for each layer itself and what it reads as one, while `hear` holds them.
    """

    of_layer: list[tuple[Tensor, Tensor]] | None = None
    gates: tuple[Tensor, ...] | None = None
    channels: list[Tensor] | None = None
    readings: list[Reading] | None = None

    def __init__(self, layers: list["MemoryLinear"]) -> None:
        by_size: dict[tuple[int, int], list[MemoryLinear]] = {}
        for layer in layers:
            size = (_num_cells(layer), layer.get_base_layer().out_features)
            by_size.setdefault(size, []).append(layer)
        self._sizes = list(by_size.values())
        self._layers = [layer for same in self._sizes for layer in same]
        for index, layer in enumerate(self._layers):
            layer.codes, layer.code_index = self, index
        self._tables: dict[Hashable, Tensor] = {}

    def freeze(self) -> None:
        """Stack the layers' codes once, for good; the layers keep their shares of the stacks."""
        parts: list[tuple[str, list[MemoryLinear]]] = [
            *((name, self._layers) for name in (*TIME_CODES, *_INSTRUCTION_CODES)),
            *((name, self._layers) for name in (_SLOT_GATES, *_INSTRUCTION_GATES)),
            *(
                (name, same)
                for name in ("lora_position_code", _CHANNEL_CODE)
                for same in self._sizes
            ),
        ]
        for name, layers in parts:
            if ADAPTER in getattr(layers[0], name):
                table = self._stacked(name, layers).detach()
                for layer, share in zip(layers, table, strict=True):
                    getattr(layer, name)[ADAPTER].data = share
                self._tables[name, layers[0].code_index] = table

    def hear(self, text_states: Tensor) -> AbstractContextManager[None]:
        """Read instructions once for many calls of the denoiser, as the steps of a sampler are.

        Args:
            text_states: `(samples, tokens, text size)`.

        Returns:
            To be entered any number of times, for calls of the denoiser with these instructions.
            It does nothing where no memory is placed, and where gradients are taken, which flow
            through `listen` alone.
        """
        seen = all(x.fast_b is not None and not x.disable_adapters for x in self._layers)
        if torch.is_grad_enabled() or not seen:
            return nullcontext()
        self._listen(text_states)
        readings = [layer.reading() for layer in self._layers]
        self.clear()
        return _Heard(self, readings)

    def listen(self, unet: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the denoiser works: hear the instructions."""
        if self.readings is None:
            self._listen(kwargs["encoder_hidden_states"])

    def _listen(self, text_states: Tensor) -> None:
        placed = next((layer for layer in self._layers if layer.fast_b is not None), None)
        if placed is not None:
            states = text_states.mean(dim=1)
            assert placed.fast_b is not None
            _check_rows(len(states), len(placed.fast_b))
            scales, shifts = self._codes(states, placed)
            scales = 1 + scales
            biases: list[Tensor] = []
            for layers in self._sizes:
                share = slice(len(biases), len(biases) + len(layers))
                bias = shifts[share]
                if ADAPTER in layers[0].lora_position_code:
                    positions = self._stacked("lora_position_code", layers)[:, None, None, :, None]
                    bias = torch.addcmul(bias, positions, scales[share])
                biases += bias.unbind()
            self.of_layer = list(zip(scales.unbind(), biases, strict=True))
            if placed.fast_table is not None:
                self.gates = self._slot_gates(states, placed)
                self.channels = [
                    channels
                    for layers in self._sizes
                    for channels in 1 + self._heard(states, _CHANNEL_CODE, layers)[:, :, None]
                ]

    def forget(self, unet: nn.Module, args: Any, output: Any) -> None:
        """Afterwards; but gradient checkpointing computes layers anew while memories are placed."""
        if not torch.is_grad_enabled():
            self.clear()

    def clear(self) -> None:
        """Forget the batch."""
        self.of_layer = self.gates = self.channels = None

    def _slot_gates(self, states: Tensor, placed: "MemoryLinear") -> tuple[Tensor, ...]:
        """How far the chunk indices and the instructions open the slots, for each layer.

        An instruction opens slots by their number, and by how long ago they were written.
        """
        by_slot = self._stacked(_SLOT_GATES, self._layers)
        assert placed.chunks is not None
        slots = by_slot.shape[1]
        opened = by_slot[:, placed.chunks % slots]
        told, by_age = (self._heard(states, name, self._layers) for name in _INSTRUCTION_GATES)
        each = len(states) // len(placed.chunks)
        ages = (placed.chunks[:, None] - 1 - torch.arange(slots, device=states.device)) % slots
        told = told + by_age.gather(2, ages.repeat_interleave(each, dim=0).expand_as(by_age))
        return (_TABLE_SCALE * (opened.repeat_interleave(each, dim=1) + told)).unbind()

    def _heard(self, states: Tensor, name: str, layers: list["MemoryLinear"]) -> Tensor:
        """What these layers' matrices of this name make of instructions, `(layers, samples, n)`."""
        matrices = self._stacked(name, layers)
        # The product of an autocast may be of another precision.
        return (states.to(matrices.dtype) @ matrices).to(matrices.dtype)

    def _codes(self, states: Tensor, placed: "MemoryLinear") -> tuple[Tensor, Tensor]:
        """W and C `(layers, groups, 1, 1, 1, r)` for instructions `(samples, text size)`."""
        codes = []
        for time, instruction in zip(TIME_CODES, _INSTRUCTION_CODES, strict=True):
            code = None
            if ADAPTER in placed.lora_time_scale:
                table = self._stacked(time, self._layers)
                assert placed.chunks is not None
                code = table[:, placed.chunks.clamp(max=table.shape[1] - 1)]
            if ADAPTER in placed.lora_instruction_scale:
                told = self._heard(states, instruction, self._layers)
                if code is not None:
                    told = told + code.repeat_interleave(told.shape[1] // code.shape[1], dim=1)
                code = told
            assert code is not None
            codes.append(code[:, :, None, None, None])
        return codes[0], codes[1]

    def _stacked(self, name: str, layers: list["MemoryLinear"]) -> Tensor:
        """These layers' codes of this name, `(layers, ..., r)`."""
        table = self._tables.get((name, layers[0].code_index))
        if table is not None:
            return table
        return torch.stack([getattr(layer, name)[ADAPTER] for layer in layers])


class _Heard(AbstractContextManager[None]):
    """What `LayerCodes.hear` has read, as long as it is entered."""

    def __init__(self, codes: LayerCodes, readings: list[Reading]) -> None:
        self._codes, self._readings = codes, readings

    def __enter__(self) -> None:
        self._codes.readings = self._readings

    def __exit__(self, *error: object) -> None:
        self._codes.readings = None


def _num_cells(layer: "MemoryLinear") -> int:
    """Cells that have a position code of their own."""
    return len(layer.lora_position_code[ADAPTER]) if ADAPTER in layer.lora_position_code else 0


class MemoryLayer(LoraLayer):
    """What both kinds of layers share: the memories in place.

    Attributes:
        fast_factors: PEFT's names of the factors that memories replace.
        fast_a: `(memories, r, in, ...)`, or None where A is the slow one.
        fast_b: `(memories, out, r, ...)`, or None while no memory is in place: the layer then is
            the slow model's.
        chunks: `(memories,)`, each one's chunk index.
        fast_table: `(memories, slots, entries, out)`, or None where there are no tables.
    """

    fast_factors: tuple[str, ...] = ()
    fast_a: Tensor | None = None
    fast_b: Tensor | None = None
    chunks: Tensor | None = None
    fast_table: Tensor | None = None

    def place(
        self,
        fast_a: Tensor | None,
        fast_b: Tensor | None,
        chunks: Tensor | None,
        fast_table: Tensor | None = None,
    ) -> None:
        """Show the fast weights of memories and how many chunks each has written, or none."""
        self.fast_a, self.fast_b, self.chunks = fast_a, fast_b, chunks
        self.fast_table = fast_table

    def starts(self) -> dict[str, Tensor]:
        """Where the fast weights of every memory start, by PEFT's names within the layer."""
        starts: dict[str, Tensor] = {}
        for factor in self.fast_factors:
            held = getattr(self, factor)[ADAPTER]
            if isinstance(held, nn.Linear | nn.Conv3d):
                starts[f"{factor}.weight"] = held.weight
            else:
                starts[factor] = held
        return starts

    @property
    def placed(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """What `place` was given last."""
        return self.fast_a, self.fast_b, self.chunks, self.fast_table


class MemoryLinear(LoraLinear, MemoryLayer):
    """A linear layer that reads memory n beside its own product.

    It adds `B_n ((A h + P[cell]) * (1 + W) + C) + (1 + U) * sum_s G[s] T_n[s, cell]`; W, C and the
    gates G are the sums of what the memory's chunk index and the sample's instruction give them,
    and U is what the instruction gives each channel.

    Attributes:
        table_grid: Which cells share an entry of the table; None where there is none.
        codes: W and C of all layers, or None where there are none.
        code_index: This layer's among them.
    """

    adapter_layer_names = (*LoraLayer.adapter_layer_names, *_CODES)
    codes: LayerCodes | None = None
    code_index: int = 0
    table_grid: TableGrid | None = None

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant:
        return _LinearVariant()

    def forward(self, x: Tensor) -> Tensor:
        """PEFT's own way takes Python as long as the layer's products, at every layer and step."""
        if self.codes is not None and self.codes.readings is not None:
            return self.codes.readings[self.code_index](x)
        result: Tensor = self.base_layer(x)
        fast_b = self.fast_b
        if fast_b is None or self.disable_adapters:
            return result
        memories = fast_b.shape[0]
        _check_rows(x.shape[0], memories)
        if self.fast_a is None:
            hidden = F.linear(x, self.lora_A[ADAPTER].weight)
        else:
            hidden = _products(x, self.fast_a.to(x.dtype))
        hidden = _coded(self, hidden)
        # Result and product in one kernel: a step is bound by the number of its kernels.
        result = torch.baddbmm(
            result.view(memories, -1, result.shape[-1]),
            hidden.reshape(memories, -1, hidden.shape[-1]).to(result.dtype),
            fast_b.transpose(1, 2).to(result.dtype),
        ).view(result.shape)
        if self.fast_table is None:
            return result
        return result + self._read(self.fast_table, result).reshape(-1, 1, result.shape[-1])

    def reading(self) -> Reading:
        """This layer with its memories and the codes of the instructions that are heard now.

        `B ((A h + P) * (1 + W) + C)` is `(B * (1 + W)) A h + B (P * (1 + W) + C)`.
        """
        assert self.codes is not None
        assert self.codes.of_layer is not None
        assert self.fast_b is not None
        base = self.get_base_layer()
        # Not rounded in between where the layer is of half precision.
        exact = torch.promote_types(base.weight.dtype, torch.float32)
        scale, bias = self.codes.of_layer[self.code_index]
        groups = len(scale)
        b = self.fast_b.to(exact)
        b = b.repeat_interleave(groups // len(b), dim=0)
        scaled = b * scale.view(groups, 1, -1)
        weight = base.weight.to(exact) + scaled @ self.lora_A[ADAPTER].weight.to(exact)
        offset = bias.view(groups, -1, bias.shape[-1]).to(exact) @ b.transpose(1, 2)
        if base.bias is not None:
            offset = offset + base.bias
        if self.fast_table is not None:
            offset = offset + self._read(self.fast_table, offset)
        dtype = base.weight.dtype
        return Reading(weight.transpose(1, 2).to(dtype), offset[:, None, :, None].to(dtype))

    def _read(self, table: Tensor, like: Tensor) -> Tensor:
        """What the open slots hold of each sample's cells, `(samples, cells, out)`."""
        assert self.codes is not None
        assert self.codes.gates is not None
        assert self.codes.channels is not None
        assert self.table_grid is not None
        gates = self.codes.gates[self.code_index].unflatten(0, (len(table), -1))
        read = torch.bmm(gates.to(like.dtype), table.flatten(2).to(like.dtype))
        channels = self.codes.channels[self.code_index].to(like.dtype)
        return self.table_grid.spread(read.view(len(channels), *table.shape[2:]) * channels)


class MemoryConv3d(LoraConv3d, MemoryLayer):
    """A convolution over time with `B_n A_n h` for memory n."""

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant:
        return _ConvVariant()


class _LinearVariant(LoraVariant):
    @staticmethod
    def init(module: LoraLayer, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        module.fast_factors = config.memory.fast_factors
        if config.memory.num_time_slots:
            module.table_grid = TableGrid.of_layer(
                module.get_base_layer().num_cells, config.latent_size, config.memory.table_side
            )
        codes = _code_tables(module, config)
        for name in _CODES:
            values = {adapter_name: nn.Parameter(codes[name])} if name in codes else {}
            setattr(module, name, nn.ParameterDict(values))


def _coded(layer: MemoryLinear, hidden: Tensor) -> Tensor:
    """`(A h + P[cell]) * (1 + W) + C` of `A h` `(rows, frames, r)`, with the codes there are."""
    if layer.codes is None:
        position = layer.lora_position_code[ADAPTER] if _num_cells(layer) else None
        if position is None:
            return hidden
        return hidden.unflatten(0, (-1, len(position))) + position[:, None]
    assert layer.codes.of_layer is not None
    scale, bias = layer.codes.of_layer[layer.code_index]
    grouped = hidden.reshape(scale.shape[0], -1, bias.shape[2], *hidden.shape[1:])
    return torch.addcmul(bias, grouped, scale)


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
        hidden = _grouped_convolution(x, fast_a.to(x.dtype), base.stride, base.padding)
        return result + _grouped_convolution(hidden, fast_b.to(x.dtype)).to(result.dtype)


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
    """The codes' start: places all differ at once, chunks and instructions begin alike.

    Only the tables, which are empty at first, keep chunks apart from the start.
    """
    memory: MemoryConfig = config.memory
    tables = {}
    weight = module.get_base_layer().weight
    if memory.position_code:
        tables["lora_position_code"] = torch.randn(module.get_base_layer().num_cells, memory.rank)
    if memory.num_time_codes:
        for name in TIME_CODES:
            tables[name] = torch.zeros(memory.num_time_codes, memory.rank)
    if memory.instruction_code:
        for name in _INSTRUCTION_CODES:
            tables[name] = torch.zeros(config.text_size, memory.rank)
    if slots := memory.num_time_slots:
        tables[_SLOT_GATES] = torch.eye(slots)
        for name in _INSTRUCTION_GATES:
            tables[name] = torch.zeros(config.text_size, slots)
        base = module.get_base_layer()
        tables[_CHANNEL_CODE] = torch.zeros(config.text_size, base.out_features)
        entries = math.prod(module.table_grid.entries)
        tables[_TABLE] = torch.zeros(slots, entries, base.out_features)
    return {name: table.to(weight) for name, table in tables.items()}
