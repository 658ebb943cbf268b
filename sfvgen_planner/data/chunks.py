"""Chunks of the store's zarr arrays: how they are packed, and a fast way to read them."""

from pathlib import Path
from typing import Any, cast

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

COMPRESSORS = (BloscCodec(cname="zstd", clevel=5), Crc32cCodec())
CODEC_NAMES = ["bytes", "blosc", "crc32c"]
CHECKSUM_BYTES = 4


def codec_names(array: zarr.Array[Any]) -> list[str]:
    """Return how an array's chunks are packed, in zarr's names."""
    codecs = cast(list[dict[str, str]], array.metadata.to_dict()["codecs"])
    return [codec["name"] for codec in codecs]


def read_chunk(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Read a whole chunk that zarr wrote with `COMPRESSORS`.

    zarr itself spends about six times as long on a chunk of 16 frames, nearly all of it outside
    decompression, and takes a missing chunk for zeros.

    Returns:
        A read-only array.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged.
    """
    data = path.read_bytes()
    packed, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if not packed or google_crc32c.value(packed) != int.from_bytes(checksum, "little"):
        raise ValueError(f"{path} is torn or was changed")
    return np.frombuffer(blosc.decompress(packed), dtype).reshape(shape)
