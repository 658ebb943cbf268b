"""Which of several memories are meant."""

import operator
from collections.abc import Iterable

from sfvgen_planner.errors import SfvgenError, require


def checked_indices(memories: Iterable[int], num_memories: int) -> list[int]:
    """The memories' indices as plain numbers.

    Raises:
        SfvgenError: There are none, one is named twice, or is not from 0 to `num_memories - 1`.
    """
    indices = [_index(index) for index in memories]
    valid = all(0 <= i < num_memories for i in indices)
    require(
        valid and len(set(indices)) == len(indices) > 0,
        f"memories must be different numbers from 0 to {num_memories - 1}, got {indices}",
    )
    return indices


def _index(value: int) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise SfvgenError(f"memories are told by their numbers, got {value!r}") from error
