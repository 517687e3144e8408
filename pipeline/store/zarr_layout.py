"""Zarr v3 on disk: groups and sharded arrays, one shard's bytes, and opening with the fastest codec pipeline.

Inner chunks are raw bytes + crc32c: zstd-3 makes log-mel at float16 only 1.35 times smaller (ESC-10) and would
cost the read rate more than that. The shard index carries its own crc32c.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from pathlib import Path
from typing import Any

import numpy
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from pipeline.store import topk
from pipeline.store.schema import DIMENSIONS, SCHEMA_VERSION, ArraySpec, StoreMeta

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


def attributes(spec: ArraySpec) -> dict[str, Any]:
    """Return the group's attributes: whoever opens it with another reader learns what it is."""
    return {"ossicle": {"schema_version": SCHEMA_VERSION, **spec.model_dump(mode="json")}}


def create_group(folder: Path, spec: ArraySpec, meta: StoreMeta) -> None:
    """Create the group of ``spec`` with its empty arrays at ``folder``."""
    group = zarr.create_group(store=folder, zarr_format=3, attributes=attributes(spec))
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


class ShardEncoder:
    """Makes a shard's bytes in memory, from the array's own ``zarr.json``: any Zarr reader opens the result.

    zarr's own pipeline encodes, always: two machines, one with ``zarrs`` and one without, write equal bytes.
    """

    def __init__(self, array_folder: Path) -> None:
        self._buffers: dict[str, Buffer] = {}
        prototype = zarr.core.buffer.default_buffer_prototype()
        description = (array_folder / "zarr.json").read_bytes()
        self._buffers["zarr.json"] = prototype.buffer.from_bytes(description)
        with _opening, zarr.config.set({"codec_pipeline.path": OWN_PIPELINE}):
            # Chunks of NaN alone must exist: a missing file means a lost shard, never a rejected one.
            array = zarr.open_array(MemoryStore(self._buffers), mode="r+", zarr_format=3)
            self._array = array.with_config({"write_empty_chunks": True})

    def encode(self, shard: int, start: int, rows: numpy.ndarray) -> bytes:
        """Return the bytes of ``shard``, whose first row is ``start``."""
        self._array[start : start + len(rows)] = rows
        key = "/".join(["c", str(shard), *["0"] * (rows.ndim - 1)])
        return self._buffers.pop(key).to_bytes()


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
