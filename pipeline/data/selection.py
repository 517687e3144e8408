"""Which rows of a store a loader uses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy

from pipeline.errors import TrainingError
from pipeline.store.reader import StoreReader


@dataclass(frozen=True)
class Selection:
    """The usable rows, shard by shard.

    Attributes:
        rows: for each shard, indices within it, ascending.
        total: number of rows over all shards.
    """

    rows: tuple[numpy.ndarray, ...]
    total: int

    @property
    def sizes(self) -> list[int]:
        """Selected rows of each shard."""
        return [len(rows) for rows in self.rows]

    def index(self, reader: StoreReader) -> numpy.ndarray:
        """Return the selected rows' numbers in the store, ascending."""
        starts = [reader.meta.bounds(shard)[0] for shard in range(reader.meta.shards)]
        found: numpy.ndarray = numpy.concatenate(
            [start + rows for start, rows in zip(starts, self.rows, strict=True)]
        )
        return found


def select_rows(
    reader: StoreReader, split: str | None = None, mask: numpy.ndarray | None = None
) -> Selection:
    """Return the rows whose status is ok, that belong to ``split`` and that ``mask`` allows.

    Args:
        reader: the store.
        split: ``train``, ``validation`` or None for all.
        mask: one boolean a row of the store, a further filter (``reader.rows`` tells what to ask for).

    Raises:
        TrainingError: none is left.
    """
    usable = reader.usable(split)
    if mask is not None:
        if mask.shape != usable.shape:
            raise TrainingError("the mask does not fit the store", expected=usable.shape, got=mask.shape)
        usable &= numpy.asarray(mask, dtype=bool)
    if not usable.any():
        raise TrainingError(
            f"no usable row in {reader.folder}" + (f" for the split {split!r}" if split else ""),
            expected="rows with status ok",
            got=reader.rows["status"].value_counts().to_dict(),
            run=f"ossicle store inspect {reader.folder}",
        )
    bounds = [reader.meta.bounds(shard) for shard in range(reader.meta.shards)]
    return Selection(
        tuple(numpy.flatnonzero(usable[start:stop]) for start, stop in bounds), int(usable.sum())
    )
