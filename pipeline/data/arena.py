"""Where rows wait to be gathered: contiguous arrays as the store holds them, filled a shard at a time.

Two sizes of the same thing: an arena for the whole selection (every shard is read once, later epochs read
nothing) or one for a block of the shuffle buffer. Values stay as stored (codes of 8 bits, float16 embeddings)
and are decoded when rows are gathered.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import torch

from pipeline.store import zarr_layout
from pipeline.store.reader import StoreReader
from pipeline.store.schema import ArraySpec

# Above this share of a shard its unused rows are held too: the shard is then read straight into place.
WHOLE_SHARE = 0.5
# A request over a network is mostly waiting; a disk wants a few reads at a time, and memory none but one.
READERS_REMOTE, READERS_LOCAL = 8, 4
Member = tuple[str, str]
NUMPY_TYPES: dict[torch.dtype, numpy.dtype[Any]] = {
    torch.float16: numpy.dtype(numpy.float16),
    torch.float32: numpy.dtype(numpy.float32),
}


class Buffers:
    """Memory that is used again: a fresh page costs more than the values that are copied into it.

    Gathering into fresh memory in a thread ran at a third of the rate of gathering into used memory (2026).
    Safe to use from several threads, of which one takes.

    Args:
        kept: buffers that wait to be used again at most; the others are freed.
    """

    def __init__(self, kept: int = 8) -> None:
        self._free: list[numpy.ndarray] = []
        self._kept = kept

    def take(self, size_bytes: int) -> numpy.ndarray:
        """Return at least ``size_bytes`` bytes of any content."""
        while self._free:
            found = self._free.pop()
            if len(found) >= size_bytes:
                return found
        return numpy.empty(size_bytes, dtype=numpy.uint8)

    def give(self, buffer: numpy.ndarray) -> None:
        """Take a buffer back."""
        if len(self._free) < self._kept:
            self._free.append(buffer)

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of any content, whose memory comes back when nothing refers to it any more."""
        kind = NUMPY_TYPES[dtype]
        size_bytes = math.prod(shape) * kind.itemsize
        memory = self.take(size_bytes)
        values = memory[:size_bytes].view(kind).reshape(tuple(shape))
        # The tensor's storage, and so every view of it, holds ``values``.
        weakref.finalize(values, self.give, memory).atexit = False
        return torch.from_numpy(values)


class Arena:
    """Contiguous rows of some shards.

    Args:
        reader: the store.
        kinds: arrays to hold.
        held: shard to the rows wanted of it, ascending indices within the shard; laid end to end in this order.
        buffers: memory to use; None = memory of its own.
    """

    def __init__(
        self,
        reader: StoreReader,
        kinds: Sequence[str],
        held: Mapping[int, numpy.ndarray],
        buffers: Buffers | None = None,
    ) -> None:
        self.reader, self.kinds, self.buffers = reader, tuple(kinds), buffers
        sizes = reader.shard_sizes
        # With memory of its own an arena stays: then only what is wanted is held.
        share = 1.0 if buffers is None else WHOLE_SHARE
        self._rows = {
            shard: None if len(rows) >= share * sizes[shard] else rows for shard, rows in held.items()
        }
        lengths = [sizes[shard] if rows is None else len(rows) for shard, rows in self._rows.items()]
        ends = numpy.cumsum(lengths)
        self._begin = dict(zip(self._rows, (ends - lengths).tolist(), strict=True))
        self._filled: set[int] = set()
        total = int(ends[-1])
        self._shapes = {
            (spec.path, name): (numpy.dtype(dtype), row_shape)
            for kind in self.kinds
            for spec in reader.parts(kind)
            for name, (dtype, row_shape) in zarr_layout.members(spec).items()
        }
        widths = {
            member: total * dtype.itemsize * math.prod(row_shape)
            for member, (dtype, row_shape) in self._shapes.items()
        }
        aligned = {member: -(-width // 64) * 64 for member, width in widths.items()}
        memory = Buffers() if buffers is None else buffers
        self._memory: numpy.ndarray | None = memory.take(sum(aligned.values()))
        self.values: dict[Member, numpy.ndarray] = {}
        begin = 0
        for member, (dtype, row_shape) in self._shapes.items():
            flat = self._memory[begin : begin + widths[member]].view(dtype)
            self.values[member] = flat.reshape(total, *row_shape)
            begin += aligned[member]

    def fill(self, shards: Sequence[int]) -> None:
        """Read those of ``shards`` that are not held yet, several at a time where that is faster."""
        missing = [shard for shard in shards if shard not in self._filled]
        readers = min(len(missing), READERS_REMOTE if self.reader.location.remote else local_readers())
        if readers <= 1:
            for shard in missing:
                self._read(shard)
        else:
            with ThreadPoolExecutor(readers, thread_name_prefix="ossicle-read") as pool:
                for _ in pool.map(self._read, missing):
                    pass
        self._filled.update(missing)

    def positions(self, shards: numpy.ndarray, rows: numpy.ndarray) -> numpy.ndarray:
        """Return where rows lie in this arena, given the shard of each and its index within the shard."""
        placed = numpy.empty(len(rows), dtype=numpy.int64)
        for shard in numpy.unique(shards).tolist():
            inside = shards == shard
            held = self._rows[shard]
            within = rows[inside] if held is None else numpy.searchsorted(held, rows[inside])
            placed[inside] = self._begin[shard] + within
        return placed

    def gather(self, kind: str, positions: numpy.ndarray, out: torch.Tensor) -> None:
        """Write rows ``positions`` of ``kind`` into ``out``."""
        parts = self.reader.parts(kind)
        target = out.numpy()
        if len(parts) == 1 and len(zarr_layout.members(parts[0])) == 1:
            held = self.values[parts[0].path, parts[0].data_name]
            if held.dtype == target.dtype:
                # mode="clip" lets numpy copy straight into ``out``; positions are inside by construction.
                numpy.take(held, positions, axis=0, out=target, mode="clip")
                return
        target[...] = self.reader.composed(kind, [self._taken(spec, positions) for spec in parts])

    def release(self) -> None:
        """Give the memory back; nothing may be gathered any more."""
        self.values = {}
        if self.buffers is not None and self._memory is not None:
            self.buffers.give(self._memory)
        self._memory = None

    def _taken(self, spec: ArraySpec, positions: numpy.ndarray) -> dict[str, numpy.ndarray]:
        return {
            name: self.values[spec.path, name].take(positions, axis=0, mode="clip")
            for name in zarr_layout.members(spec)
        }

    def _read(self, shard: int) -> None:
        begin, size, rows = self._begin[shard], self.reader.shard_sizes[shard], self._rows[shard]
        for kind in self.kinds:
            for spec in self.reader.parts(kind):
                names = list(zarr_layout.members(spec))
                if rows is None:
                    out = {name: self.values[spec.path, name][begin : begin + size] for name in names}
                    self.reader.read_stored(spec, shard, out)
                    continue
                scratch = {
                    name: numpy.empty(
                        (size, *self._shapes[spec.path, name][1]), self._shapes[spec.path, name][0]
                    )
                    for name in names
                }
                self.reader.read_stored(spec, shard, scratch)
                for name in names:
                    target = self.values[spec.path, name][begin : begin + len(rows)]
                    numpy.take(scratch[name], rows, axis=0, out=target, mode="clip")


def local_readers() -> int:
    """Return how many shards of a local store are read at once: a quarter of the cores, for others train on them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(READERS_LOCAL, cores // 4))


def held_dtype(reader: StoreReader, kind: str) -> torch.dtype:
    """Return the type in which batches hold ``kind``: spectrograms as read, embeddings float32."""
    if kind == "spectrogram" and reader.spec(kind).dtype != "float32":
        return torch.float16
    return torch.float32
