"""Chunks of the store's zarr arrays, read and written without zarr's overhead."""

import os
from contextlib import suppress
from io import BufferedWriter
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


def write_chunk(path: str, values: NDArray[Any], num_rows: int) -> None:
    """Write a whole chunk as zarr would with `COMPRESSORS`.

    zarr itself spends about six times as long on a chunk, nearly all of it outside compression;
    the same holds for reading.

    Args:
        path: Its file, which is there in full or, if this is interrupted, as before.
        values: `(rows, ...)`, at most `num_rows` of them.
        num_rows: Rows of the chunk; those beyond `values` are zero.

    Raises:
        OSError: It cannot be written.
    """
    if len(values) == num_rows:
        whole = np.ascontiguousarray(values)
    else:
        whole = np.zeros((num_rows, *values.shape[1:]), values.dtype)
        whole[: len(values)] = values
    packed = PACKER.encode(whole)
    checksum = google_crc32c.value(packed).to_bytes(CHECKSUM_BYTES, "little")
    aside = f"{path}.partial"
    with _open_new(aside) as file:
        file.writelines((packed, checksum))
    os.replace(aside, path)


def remove_chunk(path: str) -> None:
    """Remove a chunk and what a failed `write_chunk` left of it, as far as the disk allows it."""
    for file in (path, f"{path}.partial"):
        with suppress(OSError):
            os.unlink(file)


def _open_new(path: str) -> BufferedWriter:
    """Open a file for writing, and make the folder that it needs."""
    try:
        return open(path, "wb")
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return open(path, "wb")


def read_chunk(path: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Read a whole chunk.

    Returns:
        A read-only array.

    Raises:
        OSError: The file cannot be read, or is not there (zarr itself takes that for zeros).
        ValueError: It is damaged.
    """
    with open(path, "rb") as file:
        data = file.read()
    packed, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if not packed or google_crc32c.value(packed) != int.from_bytes(checksum, "little"):
        raise ValueError(f"{path} is torn or was changed")
    return np.frombuffer(blosc.decompress(packed), dtype).reshape(shape)
