"""Which rows one rank's epoch reads, block by block, and in which order they leave the shuffle buffer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from pipeline.data.sampler import EpochOrder, ShardPart
from pipeline.data.selection import Selection
from pipeline.store.reader import StoreReader


class EpochRows:
    """An ``EpochOrder`` over entries, read as rows of the store.

    Args:
        order: of the entries: selected rows, or draws of them.
        selection: the rows that may be drawn.
        counts: for each shard, how often each selected row is drawn; None = each once.
        reader: the store.
    """

    def __init__(
        self,
        order: EpochOrder,
        selection: Selection,
        counts: Sequence[numpy.ndarray] | None,
        reader: StoreReader,
    ) -> None:
        self.order, self.selection, self.counts = order, selection, counts
        self.first_rows = numpy.array([reader.meta.bounds(shard)[0] for shard in range(reader.meta.shards)])

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.order.blocks)

    def length(self, block: int) -> int:
        """Return the entries of a block."""
        return sum(part.rows for part in self.order.blocks[block])

    def held(self, block: int) -> dict[int, numpy.ndarray]:
        """Return shard to the rows of it that the block needs, ascending, each once."""
        return {part.shard: numpy.unique(self._rows(part)) for part in self.order.blocks[block]}

    def leaving(self, block: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Return each entry's shard and its row within the shard, in leaving order."""
        parts = self.order.blocks[block]
        shards = numpy.repeat([part.shard for part in parts], [part.rows for part in parts])
        rows = numpy.concatenate([self._rows(part) for part in parts])
        owners = None if self.counts is None else self.first_rows[shards] + rows
        order = self.order.block(block, owners).order
        return shards.take(order), rows.take(order)

    def _rows(self, part: ShardPart) -> numpy.ndarray:
        rows = self.selection.rows[part.shard]
        if self.counts is not None:
            rows = numpy.repeat(rows, self.counts[part.shard])
        return rows[part.start : part.stop]
