"""Nearest neighbours of every row among all rows, by cosine: exact by blocks, or by an inverted file (faiss).

Memory holds one block of queries against one block of rows; the rows lie in a memory-mapped file. Each block of
queries is written when it is done, so that a search goes on where it was stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.artifact import replacing
from pipeline.errors import ConfigError, MissingDependencyError

EXACT_ROWS = 100_000
QUERY_ROWS, BLOCK_ROWS = 4_096, 16_384
# An inverted file of 4 sqrt(n) lists; this share of them is searched for each query.
LISTS_PER_ROOT, PROBED_SHARE, TRAINING_ROWS_PER_LIST, KMEANS_ITERATIONS = 4, 0.05, 64, 10

Search = Literal["auto", "exact", "approximate"]


def nearest(
    rows: np.ndarray, count: int, folder: Path, *, search: Search = "auto", device: torch.device | None = None
) -> np.ndarray:
    """Return each row's ``count`` nearest other rows, nearest first, as places ``(n, count)`` int32.

    Args:
        rows: ``(n, dim)`` float32, in memory or mapped; a row of zeros has cosine 0 with every row.
        count: neighbours of each.
        folder: gets ``neighbours-<first row>.npy`` a block of queries; blocks that are there are not searched.
        search: ``auto`` is exact for up to 100,000 rows and on CUDA.
        device: where an exact search multiplies.

    Raises:
        ConfigError: no more rows than neighbours asked for.
        MissingDependencyError: an approximate search without faiss.
    """
    if len(rows) <= count:
        raise ConfigError(
            f"{len(rows)} training rows have no {count} neighbours each",
            expected=f"relations.neighbours below {len(rows)}", got=count, run="--set relations.neighbours=5",
        )  # fmt: skip
    device = device or torch.device("cpu")
    exact = search == "exact" or (search == "auto" and (len(rows) <= EXACT_ROWS or device.type == "cuda"))
    index = None
    found = []
    for start in range(0, len(rows), QUERY_ROWS):
        path = folder / f"neighbours-{start}.npy"
        if not path.is_file():
            queries = slice(start, min(start + QUERY_ROWS, len(rows)))
            if exact:
                block = _exact(rows, queries, count, device)
            else:
                index = index if index is not None else _inverted_file(rows)
                block = _probed(index, rows, queries, count)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, block)
        found.append(np.load(path, allow_pickle=False))
    return np.concatenate(found)


def _unit(rows: np.ndarray, device: torch.device) -> Tensor:
    copied = torch.from_numpy(np.array(rows, dtype=np.float32)).to(device)
    return torch.nn.functional.normalize(copied, dim=1)


def _exact(rows: np.ndarray, queries: slice, count: int, device: torch.device) -> np.ndarray:
    asked = _unit(rows[queries], device)
    own = torch.arange(queries.start, queries.stop, device=device)
    values = torch.full((len(asked), count), -torch.inf, device=device)
    places = torch.full((len(asked), count), -1, dtype=torch.int64, device=device)
    for start in range(0, len(rows), BLOCK_ROWS):
        block = _unit(rows[start : start + BLOCK_ROWS], device)
        cosines = asked @ block.T
        among = torch.arange(start, start + len(block), device=device)
        inside = (own >= start) & (own < start + len(block))
        cosines[inside, own[inside] - start] = -torch.inf
        best, chosen = cosines.topk(min(count, len(block)), dim=1)
        values, order = torch.cat([values, best], dim=1).topk(count, dim=1)
        places = torch.cat([places, among[chosen]], dim=1).gather(1, order)
    return places.to(torch.int32).cpu().numpy()


def _inverted_file(rows: np.ndarray) -> object:
    """Return an inverted-file index of unit rows (Jégou, Douze and Schmid, 2011)."""
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            f"an approximate search of {len(rows)} rows needs faiss",
            run="pip install 'ossicle[neighbours]', or --set relations.neighbour_search=exact",
        ) from error
    lists = max(1, min(LISTS_PER_ROOT * int(len(rows) ** 0.5), len(rows) // TRAINING_ROWS_PER_LIST))
    quantiser = faiss.IndexFlatIP(rows.shape[1])
    index = faiss.IndexIVFFlat(quantiser, rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = KMEANS_ITERATIONS
    cpu = torch.device("cpu")
    drawn = np.random.default_rng(0).choice(
        len(rows), min(len(rows), TRAINING_ROWS_PER_LIST * lists), replace=False
    )
    index.train(_unit(rows[np.sort(drawn)], cpu).numpy())
    for start in range(0, len(rows), BLOCK_ROWS):
        index.add(_unit(rows[start : start + BLOCK_ROWS], cpu).numpy())
    index.nprobe = max(8, round(PROBED_SHARE * lists))
    return index


def _probed(index: object, rows: np.ndarray, queries: slice, count: int) -> np.ndarray:
    asked = _unit(rows[queries], torch.device("cpu")).numpy()
    # One more than asked for: the row itself is among its neighbours.
    _, found = index.search(asked, count + 1)  # type: ignore[attr-defined]
    own = np.arange(queries.start, queries.stop)[:, None]
    # A stable sort puts the row itself last, or else the farthest stays last; the order of the rest is kept.
    order = np.argsort(found == own, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(found, order, axis=1).astype(np.int32)
