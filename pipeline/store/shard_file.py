"""Shards in this store's own layout, straight from and into memory: raw chunks, each with its CRC-32C.

zarr and zarrs open any array; for chunks that are nothing but their values and a checksum they still make a
copy of each, and several Python calls. Here one ``preadv`` a chunk puts the values where they belong, and a
shard's bytes are joined once. They are the bytes that zarr's own pipeline writes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

CHECKSUM_BYTES = 4
_INDEX_ENTRY_BYTES = 16
_ABSENT = 2**64 - 1
_PLAIN_CODECS: tuple[list[dict[str, Any]], ...] = (
    [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    [{"name": "bytes"}, {"name": "crc32c"}],
)

# Fills buffers one after the other from an offset of the shard.
_Fill = Callable[[int, Sequence[memoryview]], None]


@dataclass(frozen=True)
class PlainShards:
    """The layout of one array's shards.

    Attributes:
        shape: of the array.
        dtype: of its values.
        shard_rows: rows a shard.
        chunk_rows: rows a chunk.
        fill: what rows beyond the array's end hold in a chunk that is stored whole.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    shard_rows: int
    chunk_rows: int
    fill: float

    @classmethod
    def of(cls, description: bytes) -> PlainShards | None:
        """Return the layout that an array's ``zarr.json`` describes; None for any other than this module reads."""
        try:
            found = json.loads(description)
            (sharding,) = found["codecs"]
            inner = sharding["configuration"]
            shape = tuple(found["shape"])
            shard, chunk = found["chunk_grid"]["configuration"]["chunk_shape"], inner["chunk_shape"]
            plain = (
                sharding["name"] == "sharding_indexed"
                and inner.get("index_location", "end") == "end"
                and found["chunk_grid"]["name"] == "regular"
                and found["data_type"] in ("uint8", "int16", "int32", "float16", "float32")
                and all(_named(inner[key]) in _PLAIN_CODECS for key in ("codecs", "index_codecs"))
                and tuple(shard[1:]) == tuple(chunk[1:]) == shape[1:]
                and shard[0] % chunk[0] == 0
                and not found.get("storage_transformers")
            )
            fill = float(found["fill_value"])
        except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):
            return None
        dtype = np.dtype(found["data_type"]).newbyteorder("<") if plain else np.dtype(np.uint8)
        return cls(shape, dtype, shard[0], chunk[0], fill) if plain and dtype.isnative else None

    def encode(self, rows: np.ndarray) -> bytes:
        """Return the bytes of a shard that holds ``rows``, its first ones; chunks without any are absent."""
        values = np.ascontiguousarray(rows, dtype=self.dtype)
        beyond = -len(values) % self.chunk_rows
        if beyond:
            values = np.concatenate([values, np.full((beyond, *values.shape[1:]), self.fill, self.dtype)])
        content = values.reshape(-1).view(np.uint8)
        content.flags.writeable = False  # as google_crc32c wants it
        chunk_bytes = self.chunk_rows * self._row_bytes
        index = np.full((self.shard_rows // self.chunk_rows, 2), _ABSENT, dtype="<u8")
        parts: list[bytes | memoryview] = []
        for chunk in range(len(values) // self.chunk_rows):
            part = content[chunk * chunk_bytes : (chunk + 1) * chunk_bytes]
            parts += [part.data, _checksum(part)]
            index[chunk] = chunk * (chunk_bytes + CHECKSUM_BYTES), chunk_bytes + CHECKSUM_BYTES
        places = index.tobytes()
        return b"".join([*parts, places, _checksum(places)])

    def read(self, path: Path, rows: int, out: np.ndarray | None = None) -> np.ndarray:
        """Return the first ``rows`` rows of the shard at ``path``, in ``out`` where it is given.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is cut short, a chunk is absent, or a checksum does not match.
        """
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(handle).st_size

            def fill(offset: int, buffers: Sequence[memoryview]) -> None:
                wanted = sum(buffer.nbytes for buffer in buffers)
                if os.preadv(handle, buffers, offset) != wanted:
                    raise ValueError(f"the file ends within the {wanted} bytes at {offset}")

            return self._filled(size, fill, rows, out)
        finally:
            os.close(handle)

    def decode(self, content: bytes, rows: int, out: np.ndarray | None = None) -> np.ndarray:
        """Return the first ``rows`` rows of a shard whose bytes are ``content``; errors as of ``read``."""
        whole = memoryview(content)

        def fill(offset: int, buffers: Sequence[memoryview]) -> None:
            for buffer in buffers:
                buffer[:] = whole[offset : offset + buffer.nbytes]
                offset += buffer.nbytes

        return self._filled(len(content), fill, rows, out)

    def _filled(self, size: int, fill: _Fill, rows: int, out: np.ndarray | None) -> np.ndarray:
        if out is None:
            out = np.empty((rows, *self.shape[1:]), dtype=self.dtype)
        if out.shape != (rows, *self.shape[1:]) or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"cannot read {rows} rows of {self.shape[1:]} into {out.dtype} {out.shape}")
        row_bytes = self._row_bytes
        chunk_bytes = self.chunk_rows * row_bytes
        target = out.reshape(-1).view(np.uint8).data
        for chunk, (offset, length) in enumerate(self._index(size, fill)):
            first = chunk * chunk_bytes
            if first >= rows * row_bytes:
                break
            if offset == _ABSENT:
                raise ValueError(f"chunk {chunk} is absent")
            if length != chunk_bytes + CHECKSUM_BYTES or offset + length > size:
                raise ValueError(f"chunk {chunk} does not lie within the file")
            inside = target[first : first + chunk_bytes]
            # The last rows of an array end within a chunk that is stored whole.
            beyond = memoryview(bytearray(chunk_bytes - inside.nbytes))
            stored = bytearray(CHECKSUM_BYTES)
            fill(
                offset,
                [inside, beyond, memoryview(stored)] if beyond.nbytes else [inside, memoryview(stored)],
            )
            found = google_crc32c.extend(google_crc32c.value(_readable(inside)), bytes(beyond))
            if found != int.from_bytes(stored, "little"):
                raise ValueError(f"the checksum of chunk {chunk} does not match")
        return out

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def _index(self, size: int, fill: _Fill) -> list[tuple[int, int]]:
        chunks = self.shard_rows // self.chunk_rows
        length = chunks * _INDEX_ENTRY_BYTES
        if size < length + CHECKSUM_BYTES:
            raise ValueError(f"{size} bytes hold no index of {chunks} chunks")
        index, stored = bytearray(length), bytearray(CHECKSUM_BYTES)
        fill(size - length - CHECKSUM_BYTES, [memoryview(index), memoryview(stored)])
        if google_crc32c.value(bytes(index)) != int.from_bytes(stored, "little"):
            raise ValueError("the checksum of the shard's index does not match")
        places = np.frombuffer(index, dtype="<u8").reshape(chunks, 2)
        return [(int(offset), int(length)) for offset, length in places]


def _named(codecs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return codecs without configurations that say nothing."""
    return [
        {key: value for key, value in codec.items() if key != "configuration" or value} for codec in codecs
    ]


def _checksum(content: bytes | np.ndarray) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(CHECKSUM_BYTES, "little")


def _readable(buffer: memoryview) -> np.ndarray:
    """Return the bytes as google_crc32c takes them: as something that cannot be written to."""
    view = np.frombuffer(buffer, dtype=np.uint8)
    view.flags.writeable = False
    return view
