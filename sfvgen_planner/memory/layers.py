"""Layers of which many memories share one batch, with codes in their bottleneck.

They are LoRA layers of PEFT with a variant of their own (`LoraVariant`): what PEFT keeps as
parameters (A, B and the codes) is where every memory starts, and the memories themselves are
stacked tensors `(memories, ...)` that a layer is given. A batch of `N * S` samples then has N
memories of S samples each, in order, and costs one batched matrix product.
"""

import math
from typing import Any

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
from sfvgen_planner.memory.layer_codes import (
    ADAPTER,
    CHANNEL_CODE,
    CODES,
    INSTRUCTION_CODES,
    INSTRUCTION_GATES,
    POSITION_CODE,
    SLOT_GATES,
    TABLE,
    TIME_CODES,
    LayerCodes,
    Reading,
    check_rows,
)
from sfvgen_planner.memory.table_grid import TableGrid


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

    adapter_layer_names = (*LoraLayer.adapter_layer_names, *CODES)
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
        check_rows(x.shape[0], memories)
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

    @property
    def coded_cells(self) -> int:
        """Cells that have a position code of their own."""
        return len(self.lora_position_code[ADAPTER]) if ADAPTER in self.lora_position_code else 0

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
        b, a = self.fast_b.to(exact), self.lora_A[ADAPTER].weight.to(exact)
        if self.fast_a is not None:
            a = self.fast_a.to(exact).repeat_interleave(groups // len(b), dim=0)
        b = b.repeat_interleave(groups // len(b), dim=0)
        weight = base.weight.to(exact) + (b * scale.view(groups, 1, -1)) @ a
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
        for name in CODES:
            values = {adapter_name: nn.Parameter(codes[name])} if name in codes else {}
            setattr(module, name, nn.ParameterDict(values))


def _coded(layer: MemoryLinear, hidden: Tensor) -> Tensor:
    """`(A h + P[cell]) * (1 + W) + C` of `A h` `(rows, frames, r)`, with the codes there are."""
    if layer.codes is None:
        position = layer.lora_position_code[ADAPTER] if layer.coded_cells else None
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
        check_rows(len(x), len(fast_b))
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


def _code_tables(module: LoraLayer, config: LoraConfig) -> dict[str, Tensor]:
    """The codes' start: places all differ at once, chunks and instructions begin alike.

    Only the tables, which are empty at first, keep chunks apart from the start.
    """
    memory: MemoryConfig = config.memory
    tables = {}
    weight = module.get_base_layer().weight
    if memory.position_code:
        tables[POSITION_CODE] = torch.randn(module.get_base_layer().num_cells, memory.rank)
    if memory.num_time_codes:
        for name in TIME_CODES:
            tables[name] = torch.zeros(memory.num_time_codes, memory.rank)
    if memory.instruction_code:
        for name in INSTRUCTION_CODES:
            tables[name] = torch.zeros(config.text_size, memory.rank)
    if slots := memory.num_time_slots:
        tables[SLOT_GATES] = torch.eye(slots)
        for name in INSTRUCTION_GATES:
            tables[name] = torch.zeros(config.text_size, slots)
        base = module.get_base_layer()
        tables[CHANNEL_CODE] = torch.zeros(config.text_size, base.out_features)
        entries = math.prod(module.table_grid.entries)
        tables[TABLE] = torch.zeros(slots, entries, base.out_features)
    return {name: table.to(weight) for name, table in tables.items()}
