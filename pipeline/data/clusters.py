"""Clusters of a store's teacher embeddings: fitted once, kept as an artifact that its digest names.

S-SONDO (Adlouni et al., 2026) balances its training data over 50 clusters of the teacher's embeddings, raw as
they are; every constant of the fit is the published one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Float32, Int64

from pipeline import artifact
from pipeline.config import digest
from pipeline.data.sampler import permutation
from pipeline.data_config import SamplingConfig
from pipeline.errors import ConfigError, DigestMismatchError
from pipeline.store.reader import StoreReader

FILE = "clusters.safetensors"
NO_CLUSTER = -1
KMEANS: dict[str, Any] = {
    "init": "k-means++",
    "n_init": 10,
    "max_iter": 100,
    "batch_size": 10_000,
    "tol": 0.0,
    "max_no_improvement": 100,
    "reassignment_ratio": 0.0,
}


@dataclass(frozen=True)
class Clusters:
    """Where the clusters are, and each row's.

    Attributes:
        centres: (clusters, dim), in the space of the raw embeddings.
        assignment: of every row of the store; ``NO_CLUSTER`` where it has no embedding.
    """

    centres: Float32[np.ndarray, "clusters dim"]
    assignment: Int64[np.ndarray, " rows"]


def clusters_of(reader: StoreReader, config: SamplingConfig, root: Path) -> Clusters:
    """Return the clusters of the reader's embeddings: those kept below ``root``, or fitted and kept now.

    All rows that they are fitted on are held in memory at once, as the published fit does;
    ``cluster_fit_rows`` limits them.

    Args:
        reader: the store, its teacher chosen.
        config: how many clusters, of which rows, which seed.
        root: folder of all artifacts.

    Raises:
        ConfigError: fewer rows than clusters.
        DigestMismatchError: the kept file is not what was written.
    """
    described = {
        "kmeans": KMEANS, "clusters": config.clusters, "seed": config.cluster_seed, "fit": config.cluster_fit,
        "code": 1,
    }  # fmt: skip
    if config.cluster_fit_rows is not None:
        described["fit_rows"] = config.cluster_fit_rows
    # Usable rows and splits are part of what was fitted: a store may be completed later.
    inputs = {
        "rows": reader.meta.rows_digest,
        "teacher": reader.embedding.digest,
        "usable": digest(np.flatnonzero(reader.usable()).tolist()),
    }
    work = artifact.identity("clusters", described, inputs)
    folder = artifact.folder_for(root, "clusters", f"k{config.clusters}", work)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / ".lock"):
        if artifact.is_finished(folder, work):
            return _load(folder)
        found = fit(reader, config)
        content = {"centres": found.centres, "assignment": found.assignment}
        artifact.write_bytes(folder / FILE, safetensors.numpy.save(content))
        sizes = np.bincount(found.assignment[found.assignment >= 0], minlength=config.clusters)
        summary = {"sha256": artifact.file_digest(folder / FILE), "sizes": sizes.tolist()}
        artifact.finish(folder, kind="clusters", config=described, inputs=inputs, summary=summary)
        return found


def fit(reader: StoreReader, config: SamplingConfig) -> Clusters:
    """Return clusters fitted on the training rows, or with ``cluster_fit = all`` on held-out rows and them.

    Raises:
        ConfigError: fewer rows than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    training, usable = reader.usable("train"), reader.usable()
    chosen = _drawn(usable if config.cluster_fit == "all" else training, config)
    # Held-out rows first, as published: the seed's draws depend on the order.
    fitted = np.concatenate([_embeddings(reader, chosen & ~training), _embeddings(reader, chosen & training)])
    if len(fitted) < config.clusters:
        raise ConfigError(
            "fewer rows than clusters", expected=f"at most {len(fitted)} clusters", got=config.clusters,
            run=f"--set sampling.clusters={max(2, len(fitted) // 20)}",
        )  # fmt: skip
    model = MiniBatchKMeans(config.clusters, random_state=config.cluster_seed, **KMEANS).fit(fitted)
    assignment = np.full(reader.meta.rows, NO_CLUSTER, dtype=np.int64)
    for start, chosen, values in _pieces(reader, usable):
        assignment[start + chosen] = model.predict(values)
    return Clusters(model.cluster_centers_.astype(np.float32), assignment)


def _drawn(mask: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """Return ``mask``, or as many of its rows as ``cluster_fit_rows`` allows."""
    rows = np.flatnonzero(mask)
    if config.cluster_fit_rows is None or config.cluster_fit_rows >= len(rows):
        return mask
    kept = np.zeros_like(mask)
    kept[rows[permutation(len(rows), config.cluster_seed)[: config.cluster_fit_rows]]] = True
    return kept


def _load(folder: Path) -> Clusters:
    kept = artifact.read(folder)
    found = artifact.file_digest(folder / FILE) if (folder / FILE).is_file() else "no file"
    if found != kept.summary["sha256"]:
        raise DigestMismatchError(
            f"{folder / FILE} is not what was written",
            expected=kept.summary["sha256"],
            got=found,
            run=f"remove {folder}: it is made again when it is needed",
        )
    tensors = safetensors.numpy.load_file(folder / FILE)
    return Clusters(tensors["centres"], tensors["assignment"])


def _pieces(reader: StoreReader, mask: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield first row, chosen rows within the shard and their float32 embeddings, shard by shard."""
    for shard in range(reader.meta.shards):
        start, stop = reader.meta.bounds(shard)
        chosen = np.flatnonzero(mask[start:stop])
        if len(chosen):
            values = reader.read_shard(shard, ("embedding",))["embedding"][chosen]
            yield start, chosen, np.ascontiguousarray(values, dtype=np.float32)


def _embeddings(reader: StoreReader, mask: np.ndarray) -> Float32[np.ndarray, "rows dim"]:
    found = np.empty((int(mask.sum()), *reader.embedding.row_shape), dtype=np.float32)
    begin = 0
    for _, chosen, values in _pieces(reader, mask):
        found[begin : begin + len(chosen)] = values
        begin += len(chosen)
    return found


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the folder: of several runs that want the same clusters one fits them."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
