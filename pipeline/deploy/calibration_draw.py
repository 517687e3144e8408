"""Which training rows calibrate: an equal share of every cluster of teacher embeddings, not whatever came first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from pipeline.data.clusters import KMEANS
from pipeline.errors import StoreError
from pipeline.store.reader import StoreReader

# A store's rows are shuffled: the first of them stand for all, and a store of millions is not read for 256 rows.
POOL_ROWS = 4_096


@dataclass(frozen=True)
class ClusterDraw:
    """How calibration rows are drawn.

    Attributes:
        clusters: how many, fitted on the rows that may be drawn.
        nearest: take the rows nearest to each centre; otherwise a seeded draw from each cluster.
        seed: of the clusters and of the draw.
    """

    clusters: int
    nearest: bool
    seed: int = 0


def drawn_rows(
    reader: StoreReader, allowed: Int64[np.ndarray, " rows"], number: int, draw: ClusterDraw
) -> Int64[np.ndarray, " drawn"]:
    """Return ``number`` of the rows ``allowed`` (all of them where there are fewer), ascending.

    MiniBatchKMeans with the constants of ``pipeline.data.clusters`` on the raw embeddings. Each cluster gives
    the same number of rows; what small clusters cannot give, the others do.

    Args:
        reader: the store; its teacher array is the one chosen, or the only one.
        allowed: row numbers to draw from, ascending; of more than ``POOL_ROWS`` the first are used.
        number: rows wanted.
        draw: how.

    Raises:
        StoreError: the store has several teachers and none was chosen.
    """
    from sklearn.cluster import MiniBatchKMeans

    pool = allowed[: max(POOL_ROWS, number)]
    if len(pool) <= number:
        return pool
    embeddings = _embeddings(reader, pool)
    clusters = min(draw.clusters, number, len(pool))
    model = MiniBatchKMeans(clusters, random_state=draw.seed, **KMEANS).fit(embeddings)
    assigned = model.predict(embeddings)
    offsets = embeddings - model.cluster_centers_[assigned]
    distance = np.einsum("rd,rd->r", offsets, offsets)
    generator = np.random.default_rng(draw.seed)
    shares = equal_shares(np.bincount(assigned, minlength=clusters), number)
    chosen = []
    for cluster, share in enumerate(shares):
        members = np.flatnonzero(assigned == cluster)
        if draw.nearest:
            members = members[np.argsort(distance[members], kind="stable")]
        else:
            members = generator.permutation(members)
        chosen.append(members[:share])
    return np.sort(pool[np.concatenate(chosen)])


def equal_shares(sizes: Sequence[int] | np.ndarray, number: int) -> list[int]:
    """Return how many of ``number`` each group of ``sizes`` gives: as equal as the sizes allow, at most all.

    What does not divide goes to the larger groups, the first of equals first.
    """
    shares = [0] * len(sizes)
    left = min(number, int(np.sum(sizes)))
    while left:
        open_groups = [g for g in range(len(sizes)) if shares[g] < sizes[g]]
        each = left // len(open_groups)
        if not each:
            for group in sorted(open_groups, key=lambda g: -int(sizes[g]))[:left]:
                shares[group] += 1
            return shares
        for group in open_groups:
            given = min(each, int(sizes[group]) - shares[group])
            shares[group] += given
            left -= given
    return shares


def _embeddings(reader: StoreReader, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows dim"]:
    found = np.empty((len(rows), *reader.embedding.row_shape), dtype=np.float32)
    for shard in range(reader.meta.shards):
        start, stop = reader.meta.bounds(shard)
        first, last = np.searchsorted(rows, (start, stop))
        if first < last:
            values = reader.read_shard(shard, ("embedding",))["embedding"]
            found[first:last] = values[rows[first:last] - start]
    if not np.isfinite(found).all():
        raise StoreError(
            "embeddings of usable rows are not finite", run=f"ossicle store verify {reader.location}"
        )
    return found
