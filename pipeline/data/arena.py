"""Where decoded rows wait to be gathered: one contiguous array a kind, filled a shard at a time.

Two sizes of the same thing: an arena for the whole selection (every shard is decoded once, later epochs cost
no decoding) or one for a block of the shuffle buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch

from pipeline.data.sampler import Block, ShardPart
from pipeline.data.selection import Selection
from pipeline.store.reader import StoreReader


class Arena:
    """Contiguous rows of some shard parts.

    Args:
        reader: the store.
        selection: which rows of each shard are used; parts count in selected rows.
        kinds: arrays to hold.
        parts: what is to be held, laid end to end.
    """

    def __init__(
        self, reader: StoreReader, selection: Selection, kinds: Sequence[str], parts: Sequence[ShardPart]
    ) -> None:
        self.reader, self.selection, self.kinds = reader, selection, tuple(kinds)
        self.parts = tuple(parts)
        starts = numpy.cumsum([0, *(part.rows for part in self.parts)])
        self._place = {
            part.shard: int(begin) - part.start for part, begin in zip(self.parts, starts, strict=False)
        }
        self._filled: set[int] = set()
        self.index = numpy.empty(int(starts[-1]), dtype=numpy.int64)
        self.values = {
            kind: numpy.empty((len(self.index), *reader.spec(kind).row_shape), held_dtype(reader, kind))
            for kind in self.kinds
        }

    def fill(self, shards: Sequence[int]) -> None:
        """Decode those of ``shards`` that are not held yet."""
        for part in self.parts:
            if part.shard in shards and part.shard not in self._filled:
                self._decode(part)
                self._filled.add(part.shard)

    def positions(self, block: Block) -> numpy.ndarray:
        """Return where the rows of ``block`` lie in this arena, in leaving order."""
        offsets = numpy.array([self._place[part.shard] for part in block.parts])
        lengths = [part.rows for part in block.parts]
        starts = numpy.array([part.start for part in block.parts])
        first = numpy.cumsum([0, *lengths[:-1]])
        within = numpy.arange(sum(lengths)) - numpy.repeat(first, lengths)
        placed: numpy.ndarray = within + numpy.repeat(offsets + starts, lengths)
        return placed.take(block.order)

    def gather(self, kind: str, positions: numpy.ndarray, out: torch.Tensor) -> None:
        """Copy rows ``positions`` into ``out``."""
        # mode="clip" lets numpy copy straight into ``out``; positions are inside by construction.
        numpy.take(self.values[kind], positions, axis=0, out=out.numpy(), mode="clip")

    def _decode(self, part: ShardPart) -> None:
        begin = self._place[part.shard] + part.start
        rows = self.selection.rows[part.shard][part.start : part.stop]
        first_row = self.reader.meta.bounds(part.shard)[0]
        size = self.reader.shard_sizes[part.shard]
        self.index[begin : begin + part.rows] = rows + first_row
        for kind in self.kinds:
            target = self.values[kind][begin : begin + part.rows]
            same_type = target.dtype == stored_dtype(self.reader, kind)
            if part.rows == size and same_type:
                self.reader.read_shard(part.shard, (kind,), out={kind: target})
                continue
            values = self.reader.read_shard(part.shard, (kind,))[kind]
            if same_type:
                numpy.take(values, rows, axis=0, out=target, mode="clip")
            else:
                target[...] = values[rows]


def stored_dtype(reader: StoreReader, kind: str) -> numpy.dtype:
    """Return the type in which ``read_shard`` gives ``kind``."""
    spec = reader.spec(kind)
    return numpy.dtype(numpy.float16 if spec.dtype == "uint8" else spec.dtype)


def held_dtype(reader: StoreReader, kind: str) -> numpy.dtype:
    """Return the type in which batches hold ``kind``: spectrograms as read, embeddings float32."""
    return stored_dtype(reader, kind) if kind == "spectrogram" else numpy.dtype(numpy.float32)
