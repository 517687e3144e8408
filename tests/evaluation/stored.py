"""What the shared stores hold of a model, read by the sounds' bytes alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.store.reader import StoreReader


def vectors(folder: Path, digest: str, paths: Sequence[Path]) -> np.ndarray:
    """Return (clips, dim) of the one store in ``folder`` under the model of that digest."""
    (store,) = folder.glob("clips-*")
    reader = StoreReader(store)
    (spec,) = (one for one in reader.meta.arrays if one.digest == digest)
    rows = np.concatenate([reader.read_array(spec, shard) for shard in range(reader.meta.shards)])
    keys = reader.rows["key"].tolist()
    return np.stack([rows[keys.index(hashlib.sha256(path.read_bytes()).hexdigest())] for path in paths])
