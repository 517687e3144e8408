"""Which rows of a store a run may use, and those rows shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.errors import StoreError
from pipeline.store.schema import OK

Array = Literal["spectrogram", "embedding"]


class ShardReader(Protocol):
    """The part of ``pipeline.store.reader.StoreReader`` that training uses."""

    @property
    def rows(self) -> pd.DataFrame: ...

    @property
    def shard_sizes(self) -> list[int]: ...

    def read_shard(self, shard: int, arrays: tuple[str, ...]) -> dict[str, np.ndarray]: ...


def usable(reader: ShardReader, split: str) -> np.ndarray:
    """Return a mask ``(rows,)`` of the rows of ``split`` whose arrays are there."""
    rows = reader.rows
    mask: np.ndarray = ((rows["status"] == OK) & (rows["split"] == split)).to_numpy(dtype=bool, copy=True)
    return mask


def pieces(reader: ShardReader, mask: np.ndarray, array: Array) -> Iterator[np.ndarray]:
    """Yield the masked rows of one array, a shard at a time; shards without such rows are not read.

    Raises:
        StoreError: a row that the store calls usable is not finite.
    """
    start = 0
    for shard, size in enumerate(reader.shard_sizes):
        chosen = mask[start : start + size]
        if chosen.any():
            piece = reader.read_shard(shard, (array,))[array][chosen]
            _require_finite(piece, array, start + np.flatnonzero(chosen))
            yield piece
        start += size


def first_rows(reader: ShardReader, mask: np.ndarray, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return index ``(n,)``, spectrogram ``(n, mels, frames)`` and embedding ``(n, dim)`` of the first rows.

    The store's rows are shuffled when they are planned, so the first ones are a fair sample.
    """
    index = np.flatnonzero(mask)[:limit]
    chosen = np.zeros_like(mask)
    chosen[index] = True
    spectrogram = [torch.from_numpy(p.astype(np.float16)) for p in pieces(reader, chosen, "spectrogram")]
    embedding = [torch.from_numpy(p.astype(np.float32)) for p in pieces(reader, chosen, "embedding")]
    if not spectrogram:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0, 0), torch.zeros(0, 0)
    return torch.from_numpy(index), torch.cat(spectrogram), torch.cat(embedding)


def _require_finite(piece: np.ndarray, array: str, index: np.ndarray) -> None:
    bad = ~np.isfinite(piece).reshape(len(piece), -1).all(axis=1)
    if bad.any():
        raise StoreError(
            f"{int(bad.sum())} usable rows have values in {array} that are not finite",
            expected="finite, or status 'rejected'",
            got=f"row {index[bad][0]}",
            run="ossicle store verify RECIPE",
        )
