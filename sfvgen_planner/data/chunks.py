"""Chunks of the store's zarr arrays, read and written without zarr's overhead."""

from pathlib import Path
from typing import Any, cast

import google_crc32c
import numpy as np
import zarr
from numcodecs import Blosc, blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

PACKER = Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)
COMPRESSORS = (BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"), Crc32cCodec())
CODEC_NAMES = ["bytes", "blosc", "crc32c"]
CHECKSUM_BYTES = 4


def codec_names(array: zarr.Array[Any]) -> list[str]:
    """Return how an array's chunks are packed, in zarr's names."""
    codecs = cast(list[dict[str, str]], array.metadata.to_dict()["codecs"])
    return [codec["name"] for codec in codecs]


def write_chunk(path: Path, values: NDArray[Any]) -> None:
    """Write a whole chunk as zarr would with `COMPRESSORS`.

    zarr itself spends about six times as long on a chunk, nearly all of it outside compression;
    the same holds for reading.
    """
    packed = bytes(PACKER.encode(np.ascontiguousarray(values)))
    checksum = google_crc32c.value(packed).to_bytes(CHECKSUM_BYTES, "little")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.partial")
    aside.write_bytes(packed + checksum)
    aside.replace(path)


def read_chunk(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Read a whole chunk.

    Returns:
        A read-only array.

    Raises:
        OSError: The file cannot be read, or is not there (zarr itself takes that for zeros).
        ValueError: It is damaged.
    """
    data = path.read_bytes()
    packed, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if not packed or google_crc32c.value(packed) != int.from_bytes(checksum, "little"):
        raise ValueError(f"{path} is torn or was changed")
    return np.frombuffer(blosc.decompress(packed), dtype).reshape(shape)
