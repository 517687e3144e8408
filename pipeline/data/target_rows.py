"""Embeddings of other rows than the spectrograms': an augmented view that shall match its clean window's.

"View consistency": the student hears the window through a device, a room or noise and is asked for what the
teacher said of the clean one, so that it learns to be invariant (Morocutti et al., EUSIPCO 2023, keep the
clean clip's cached logits under device impulse responses in this way).
"""

from __future__ import annotations

import numpy
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pipeline.store.reader import StoreReader

CLEAN, AUGMENTED = "clean", "augmented"


def clean_rows(reader: StoreReader) -> Int64[numpy.ndarray, " rows"]:
    """Return for every row of the store the row whose embedding is its target.

    An augmented view's is the usable clean window of the same clip and offset. A view cut at an offset of its
    own has none and keeps its own, as every other row does.
    """
    rows = reader.rows
    own = numpy.arange(len(rows))
    if "view" not in rows:
        return own
    views = rows["view"].to_numpy(dtype=object)
    places = list(zip(rows["clip_id"], rows["start_seconds"], strict=True))
    clean = numpy.flatnonzero((views == CLEAN) & reader.usable())
    row_of = {places[row]: row for row in clean.tolist()}
    for row in numpy.flatnonzero(views == AUGMENTED).tolist():
        own[row] = row_of.get(places[row], row)
    return own


class TargetRows:
    """The targets' embeddings, in memory: float16 or float32 as stored, decoded where rows are taken.

    Args:
        reader: the store, its teacher chosen.
        targets: for every row of the store, the row whose embedding is its target.
        mask: bool (store rows,), the rows that will be asked for; only their targets are held.
    """

    def __init__(
        self, reader: StoreReader, targets: Int64[numpy.ndarray, " rows"], mask: numpy.ndarray
    ) -> None:
        wanted = numpy.unique(targets[mask])
        self._row_of = targets
        self._place = numpy.full(len(targets), -1, dtype=numpy.int64)
        self._place[wanted] = numpy.arange(len(wanted))
        parts = []
        for shard in range(reader.meta.shards):
            start, stop = reader.meta.bounds(shard)
            chosen = wanted[(wanted >= start) & (wanted < stop)] - start
            if len(chosen):
                parts.append(reader.read_shard(shard, ("embedding",))["embedding"][chosen])
        self._values = numpy.concatenate(parts)

    def of(
        self, index: Int64[numpy.ndarray, " batch"]
    ) -> tuple[Int64[Tensor, " batch"], Float[Tensor, "batch dim"]]:
        """Return the target row of each row, and its float32 embedding."""
        rows = self._row_of[index]
        values = self._values[self._place[rows]].astype(numpy.float32)
        return torch.from_numpy(rows), torch.from_numpy(values)
