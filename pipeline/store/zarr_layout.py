"""Zarr v3 on disk: groups and sharded arrays, one shard's bytes, and opening with the fastest codec pipeline.

Inner chunks are raw bytes + crc32c: zstd-3 makes log-mel at float16 only 1.35 times smaller (ESC-10) and would
cost the read rate more than that. The shard index carries its own crc32c.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from pipeline.store import topk
from pipeline.store.location import Location
from pipeline.store.schema import DIMENSIONS, SCHEMA_VERSION, ArraySpec, StoreMeta
from pipeline.store.shard_file import PlainShards

log = logging.getLogger(__name__)

OWN_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"
FAST_PIPELINE = "zarrs.ZarrsCodecPipeline"
FILL_VALUES = {"uint8": 0, "int16": topk.NO_CLASS, "int32": topk.NO_CLASS}
# zarr reads the pipeline's name while an array is opened; the setting is global, so openings take turns.
_opening = threading.Lock()


def members(spec: ArraySpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return name to (dtype, row shape) of each Zarr array in the group of ``spec``."""
    if spec.top_k is not None:
        kept = (spec.top_k,)
        indices = topk.index_dtype(spec.row_shape[0])
        return {"values": (spec.dtype, kept), "indices": (indices, kept), "tail": ("float32", ())}
    arrays: dict[str, tuple[str, tuple[int, ...]]] = {spec.data_name: (spec.dtype, spec.row_shape)}
    if spec.dtype == "uint8":
        arrays |= {"scale": ("float32", ()), "offset": ("float32", ())}
    return arrays


def shard_file(spec: ArraySpec, name: str, shard: int) -> str:
    """Return the shard's path inside the store."""
    zeros = "/0" * len(members(spec)[name][1])
    return f"{spec.path}/{name}/c/{shard}{zeros}"


def shard_files(spec: ArraySpec, shard: int) -> list[str]:
    """Return the paths of all files of one shard."""
    return [shard_file(spec, name, shard) for name in members(spec)]


def attributes(spec: ArraySpec) -> dict[str, Any]:
    """Return the group's attributes: whoever opens it with another reader learns what it is."""
    return {"ossicle": {"schema_version": SCHEMA_VERSION, **spec.model_dump(mode="json")}}


def read_attributes(location: Location, spec: ArraySpec) -> dict[str, Any]:
    """Return what the group of ``spec`` says of itself; empty if it says nothing that can be understood.

    Raises:
        FileNotFoundError: no such group.
    """
    try:
        found = json.loads(location.read(f"{spec.path}/zarr.json").decode())
        described = found["attributes"]["ossicle"]
    except (ValueError, KeyError, TypeError):
        return {}
    return described if isinstance(described, dict) else {}


def group_files(spec: ArraySpec, meta: StoreMeta) -> dict[str, bytes]:
    """Return name to content of the files that describe the group of ``spec``, its arrays still empty."""
    files: dict[str, Buffer] = {}
    group = zarr.create_group(store=MemoryStore(files), zarr_format=3, attributes=attributes(spec))
    names = DIMENSIONS[spec.kind] if spec.top_k is None else ("rank",)
    for name, (dtype, row_shape) in members(spec).items():
        group.create_array(
            name,
            shape=(meta.rows, *row_shape),
            dtype=dtype,
            chunks=(meta.chunk_rows, *row_shape),
            shards=(meta.shard_rows, *row_shape),
            filters=None,
            serializer=BytesCodec(),
            compressors=[Crc32cCodec()],
            fill_value=FILL_VALUES.get(dtype, float("nan")),
            dimension_names=("row", *names[: len(row_shape)]),
        )
    return {name: files[name].to_bytes() for name in sorted(files)}


class _InMemory:
    """One array whose shards pass through memory one at a time; zarr's own pipeline codes them."""

    def __init__(self, description: bytes) -> None:
        prototype = default_buffer_prototype()
        self._buffers: dict[str, Buffer] = {"zarr.json": prototype.buffer.from_bytes(description)}
        with _opening, zarr.config.set({"codec_pipeline.path": OWN_PIPELINE}):
            # Chunks of NaN alone must exist: a missing file means a lost shard, never a rejected one.
            array = zarr.open_array(MemoryStore(self._buffers), mode="r+", zarr_format=3)
            self.array = array.with_config({"write_empty_chunks": True})

    def _key(self, shard: int) -> str:
        return "/".join(["c", str(shard), *["0"] * (self.array.ndim - 1)])


class ShardEncoder:
    """Makes a shard's bytes in memory, from the array's own ``zarr.json``: any Zarr reader opens the result.

    Shards of the store's own layout are joined here, others coded by zarr's own pipeline, never by ``zarrs``;
    the bytes are equal either way, so two machines with different packages write the same store.
    """

    def __init__(self, description: bytes) -> None:
        self._plain = PlainShards.of(description)
        self._by_zarr = _ZarrEncoder(description) if self._plain is None else None

    def encode(self, shard: int, start: int, rows: numpy.ndarray) -> bytes:
        """Return the bytes of ``shard``, whose first row is ``start``."""
        if self._by_zarr is not None:
            return self._by_zarr.encode(shard, start, rows)
        assert self._plain is not None
        return self._plain.encode(rows)


class _ZarrEncoder(_InMemory):
    def encode(self, shard: int, start: int, rows: numpy.ndarray) -> bytes:
        self.array[start : start + len(rows)] = rows
        return self._buffers.pop(self._key(shard)).to_bytes()


class ShardDecoder(_InMemory):
    """Reads a shard's rows from its bytes, for places that no codec pipeline opens by itself.

    Safe to use from several threads, one at a time.
    """

    def __init__(self, description: bytes) -> None:
        super().__init__(description)
        self._lock = threading.Lock()

    def decode(
        self, shard: int, start: int, stop: int, content: bytes, out: numpy.ndarray | None = None
    ) -> numpy.ndarray:
        """Return rows ``start`` to ``stop``, all of ``shard``, in ``out`` where it is given.

        Raises:
            ValueError, RuntimeError, OSError: zarr's, of bytes that are no such shard.
        """
        prototype = default_buffer_prototype()
        if out is None:
            out = numpy.empty((stop - start, *self.array.shape[1:]), dtype=self.array.dtype)
        key = self._key(shard)
        with self._lock:
            self._buffers[key] = prototype.buffer.from_bytes(content)
            try:
                target: Any = prototype.nd_buffer.from_numpy_array(out)
                self.array.get_basic_selection(slice(start, stop), out=target)
            finally:
                del self._buffers[key]
        return out


def fast_pipeline_installed() -> bool:
    """Whether the ``zarrs`` codec pipeline can be used."""
    return importlib.util.find_spec("zarrs") is not None


def open_array(folder: Path) -> zarr.Array:
    """Open one array for reading, with the ``zarrs`` pipeline when installed, else zarr's own."""
    pipeline = FAST_PIPELINE if fast_pipeline_installed() else OWN_PIPELINE
    if pipeline == OWN_PIPELINE:
        log.info(
            "zarrs is not installed: reading with zarr's own codecs (pip install 'ossicle[speed]' is faster)"
        )
    else:
        # Importing registers the pipeline with zarr; it changes no global setting.
        importlib.import_module("zarrs")
    with _opening, zarr.config.set({"codec_pipeline.path": pipeline}):
        return zarr.open_array(folder, mode="r", zarr_format=3)
