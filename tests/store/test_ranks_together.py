"""Ranks that start and finish one store at the same time."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.store import schema
from pipeline.store.writer import StoreWriter

ROWS = 24


def plan() -> pd.DataFrame:
    return pd.DataFrame({"row": range(ROWS), "key": [f"{row:032x}" for row in range(ROWS)]})


def meta() -> schema.StoreMeta:
    spec = schema.embedding_spec("tiny", "a" * 64, 3)
    return schema.StoreMeta(name="s", manifest_digest="m", shard_rows=4, chunk_rows=4, arrays=(spec,))


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (schema.CLIPS_FILE, schema.REJECTS_FILE)}


def embed(folder: Path, rank: int, world: int, together: threading.Barrier | None = None) -> None:
    """One rank's whole life: all start at once, and each that finds the store complete finishes it."""
    if together is not None:
        together.wait()
    with StoreWriter.create(folder, plan(), meta()) as writer:
        for shard in writer.pending(None, rank, world):
            start, stop = writer.meta.bounds(shard)
            values = np.arange(start * 3, stop * 3, dtype=np.float32).reshape(-1, 3)
            rejects = [{"row": start, "reason": "silent", "problem": "it is"}] if shard % 2 else []
            writer.write_shard(shard, {writer.meta.arrays[0].path: values}, rejects)
        if together is not None:
            together.wait()
        if not writer.pending():
            writer.finish(config={}, inputs={})


def test_ranks_that_finish_at_once_write_the_tables_of_one(tmp_path: Path) -> None:
    embed(tmp_path / "one", 0, 1)
    expected = tables(tmp_path / "one")
    for attempt in range(3):
        folder = tmp_path / f"several{attempt}"
        together = threading.Barrier(4)
        ranks = [threading.Thread(target=embed, args=(folder, rank, 4, together)) for rank in range(4)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(timeout=60)
        assert tables(folder) == expected
        assert (folder / "artifact.json").is_file()


def test_a_rank_that_starts_late_leaves_a_finished_store_finished(tmp_path: Path) -> None:
    embed(tmp_path / "one", 0, 1)
    expected = tables(tmp_path / "one")
    with StoreWriter.create(tmp_path / "one", plan(), meta()) as late:
        assert not late.pending()
    assert tables(tmp_path / "one") == expected
    assert set(pd.read_parquet(tmp_path / "one" / schema.CLIPS_FILE)["status"]) == {"ok", "rejected"}
