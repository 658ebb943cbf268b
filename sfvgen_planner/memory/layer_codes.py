"""What chunk indices and instructions give the layers of a memory, for all of them at once."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from sfvgen_planner.errors import require

if TYPE_CHECKING:
    from sfvgen_planner.memory.layers import MemoryLinear

ADAPTER = "default"
"""PEFT's name of the adapter."""
POSITION_CODE = "lora_position_code"
TIME_CODES = ("lora_time_scale", "lora_time_shift")
INSTRUCTION_CODES = ("lora_instruction_scale", "lora_instruction_shift")
SLOT_GATES = "lora_slot_gates"
INSTRUCTION_GATES = ("lora_instruction_gates", "lora_age_gates")
CHANNEL_CODE = "lora_channel_code"
TABLE = "lora_table"
CODES = (
    POSITION_CODE,
    *TIME_CODES,
    *INSTRUCTION_CODES,
    SLOT_GATES,
    *INSTRUCTION_GATES,
    CHANNEL_CODE,
    TABLE,
)
# At more a first write overshoots, for it changes the adapters too.
_TABLE_SCALE = 2.0


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

    def __init__(self, layers: list[MemoryLinear]) -> None:
        by_size: dict[tuple[int, int], list[MemoryLinear]] = {}
        for layer in layers:
            size = (layer.coded_cells, layer.get_base_layer().out_features)
            by_size.setdefault(size, []).append(layer)
        self._sizes = list(by_size.values())
        self._layers = [layer for same in self._sizes for layer in same]
        for index, layer in enumerate(self._layers):
            layer.codes, layer.code_index = self, index
        self._tables: dict[Hashable, Tensor] = {}

    def freeze(self) -> None:
        """Stack the layers' codes once, for good; the layers keep their shares of the stacks."""
        parts: list[tuple[str, list[MemoryLinear]]] = [
            *((name, self._layers) for name in (*TIME_CODES, *INSTRUCTION_CODES)),
            *((name, self._layers) for name in (SLOT_GATES, *INSTRUCTION_GATES)),
            *((name, same) for name in (POSITION_CODE, CHANNEL_CODE) for same in self._sizes),
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
            check_rows(len(states), len(placed.fast_b))
            scales, shifts = self._codes(states, placed)
            scales = 1 + scales
            biases: list[Tensor] = []
            for layers in self._sizes:
                share = slice(len(biases), len(biases) + len(layers))
                bias = shifts[share]
                if ADAPTER in layers[0].lora_position_code:
                    positions = self._stacked(POSITION_CODE, layers)[:, None, None, :, None]
                    bias = torch.addcmul(bias, positions, scales[share])
                biases += bias.unbind()
            self.of_layer = list(zip(scales.unbind(), biases, strict=True))
            if placed.fast_table is not None:
                self.gates = self._slot_gates(states, placed)
                self.channels = [
                    channels
                    for layers in self._sizes
                    for channels in 1 + self._heard(states, CHANNEL_CODE, layers)[:, :, None]
                ]

    def forget(self, unet: nn.Module, args: Any, output: Any) -> None:
        """Afterwards; but gradient checkpointing computes layers anew while memories are placed."""
        if not torch.is_grad_enabled():
            self.clear()

    def clear(self) -> None:
        """Forget the batch."""
        self.of_layer = self.gates = self.channels = None

    def _slot_gates(self, states: Tensor, placed: MemoryLinear) -> tuple[Tensor, ...]:
        """How far the chunk indices and the instructions open the slots, for each layer.

        An instruction opens slots by their number, and by how long ago they were written.
        """
        by_slot = self._stacked(SLOT_GATES, self._layers)
        assert placed.chunks is not None
        slots = by_slot.shape[1]
        opened = by_slot[:, placed.chunks % slots]
        told, by_age = (self._heard(states, name, self._layers) for name in INSTRUCTION_GATES)
        each = len(states) // len(placed.chunks)
        ages = (placed.chunks[:, None] - 1 - torch.arange(slots, device=states.device)) % slots
        told = told + by_age.gather(2, ages.repeat_interleave(each, dim=0).expand_as(by_age))
        return (_TABLE_SCALE * (opened.repeat_interleave(each, dim=1) + told)).unbind()

    def _heard(self, states: Tensor, name: str, layers: list[MemoryLinear]) -> Tensor:
        """What these layers' matrices of this name make of instructions, `(layers, samples, n)`."""
        matrices = self._stacked(name, layers)
        # The product of an autocast may be of another precision.
        return (states.to(matrices.dtype) @ matrices).to(matrices.dtype)

    def _codes(self, states: Tensor, placed: MemoryLinear) -> tuple[Tensor, Tensor]:
        """W and C `(layers, groups, 1, 1, 1, r)` for instructions `(samples, text size)`."""
        codes = []
        for time, instruction in zip(TIME_CODES, INSTRUCTION_CODES, strict=True):
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

    def _stacked(self, name: str, layers: list[MemoryLinear]) -> Tensor:
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


def check_rows(rows: int, memories: int) -> None:
    require(
        rows % memories == 0,
        f"{memories} memories need a batch of as many samples for each, in order of the memories",
    )
