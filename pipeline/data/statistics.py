"""Statistics of a store's usable rows, in one pass over its shards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from pipeline.data.selection import select_rows
from pipeline.store.reader import StoreReader


def spectrogram_statistics(reader: StoreReader, split: str | None = "train") -> tuple[float, float]:
    """Return mean and standard deviation over every value of the split's log-mels.

    These are a student's input normalisation and the value that masks are filled with.
    """
    count, total, squares = 0, 0.0, 0.0
    for _, values in _shards(reader, "spectrogram", split):
        wide = values.astype(numpy.float32)
        count += wide.size
        total += float(wide.sum(dtype=numpy.float64))
        squares += float(numpy.square(wide, dtype=numpy.float64).sum())
    mean = total / count
    return mean, float(numpy.sqrt(max(squares / count - mean**2, 0.0)))


def read_embeddings(
    reader: StoreReader, split: str | None = None, mask: numpy.ndarray | None = None
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return row numbers (n,) int64, ascending, and their embeddings (n, dim) float32."""
    parts = list(_shards(reader, "embedding", split, mask))
    return numpy.concatenate([rows for rows, _ in parts]), numpy.concatenate(
        [values.astype(numpy.float32) for _, values in parts]
    )


def _shards(
    reader: StoreReader, kind: str, split: str | None, mask: numpy.ndarray | None = None
) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
    for shard, rows in enumerate(select_rows(reader, split, mask).rows):
        if len(rows):
            yield rows + reader.meta.bounds(shard)[0], reader.read_shard(shard, (kind,))[kind][rows]
