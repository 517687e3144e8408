"""Agreement with the teacher's embeddings that a store holds: no audio is opened and no teacher runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float32

from pipeline.config import LogMelConfig
from pipeline.errors import StoreError
from pipeline.evaluation import structure
from pipeline.store.location import Place
from pipeline.store.reader import StoreReader

MAXIMUM_ROWS = 512
NEIGHBOURS = 10
VALIDATION = "validation"


class LogMelHearer(Protocol):
    """A model that hears log-mels of one frontend."""

    def embed_log_mels(
        self, log_mels: Float32[np.ndarray, "rows mels frames"]
    ) -> Float32[np.ndarray, "rows dim"]:
        """Return the embedding of every row."""
        ...


@dataclass(frozen=True)
class StoreRows:
    """Rows of a store: log-mels (rows, mels, frames) and the teacher's embeddings (rows, dim)."""

    teacher: str
    split: str
    log_mels: np.ndarray
    embeddings: np.ndarray


def read_rows(
    place: Place, frontend: LogMelConfig, teacher: str | None, maximum: int = MAXIMUM_ROWS
) -> StoreRows:
    """Return at most ``maximum`` validation rows, spread evenly; of all rows where none is for validation.

    Args:
        place: the store.
        frontend: whose log-mels are read.
        teacher: whose embeddings, where the store holds several.
        maximum: rows at most.

    Raises:
        MissingArtifactError: no finished store is there.
        DigestMismatchError: it holds no log-mel of this frontend, or no such teacher.
        StoreError: it holds several teachers and none is chosen, or too few rows.
    """
    reader = StoreReader(place, frontend=frontend, teacher=teacher)
    name = reader.embedding.name
    split = VALIDATION if VALIDATION in set(reader.rows["split"]) else "all"
    usable = np.flatnonzero(reader.usable(None if split == "all" else split))
    if len(usable) <= NEIGHBOURS:
        raise StoreError(f"{place} has too few {split} rows", expected=f"> {NEIGHBOURS}", got=len(usable))
    if len(usable) > maximum:
        usable = usable[np.round(np.linspace(0, len(usable) - 1, maximum)).astype(np.int64)]
    log_mels, embeddings = [], []
    for shard in range(reader.meta.shards):
        start, stop = reader.meta.bounds(shard)
        inside = usable[(usable >= start) & (usable < stop)] - start
        if len(inside):
            arrays = reader.read_shard(shard)
            log_mels.append(arrays["spectrogram"][inside].astype(np.float32))
            embeddings.append(arrays["embedding"][inside].astype(np.float32))
    return StoreRows(name, split, np.concatenate(log_mels), np.concatenate(embeddings))


def overlap(model: LogMelHearer, rows: StoreRows, batch: int = 64) -> float:
    """Return the share of each row's nearest neighbours that model and teacher agree on, in [0, 1]."""
    parts = [
        model.embed_log_mels(rows.log_mels[start : start + batch])
        for start in range(0, len(rows.log_mels), batch)
    ]
    return structure.neighbour_overlap(np.concatenate(parts), rows.embeddings, NEIGHBOURS)
