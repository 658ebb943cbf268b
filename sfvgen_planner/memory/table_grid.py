"""Which cells of a layer share an entry of its memory's table."""

import math
from typing import NamedTuple

from torch import Tensor

from sfvgen_planner.errors import require


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
