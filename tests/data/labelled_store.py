"""A store of rows with datasets, labels, views and embeddings in three clouds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy
import pandas

from pipeline.store.reader import StoreReader
from tests.store import made_store

ROWS, REJECTED = 180, (7, 50)
CLOUD_SHARES = (0.7, 0.25, 0.05)


def content() -> made_store.Content:
    """Return rows: every third is an augmented view of the clean row before it, unless cut at its own offset."""
    made = made_store.content(ROWS, REJECTED)
    generator = numpy.random.default_rng(3)
    cloud = generator.choice(3, ROWS, p=CLOUD_SHARES)
    embedding = (
        10 * numpy.eye(3, made_store.DIM)[cloud] + generator.normal(0, 0.1, (ROWS, made_store.DIM))
    ).astype(numpy.float32)
    rows: pandas.DataFrame = made.rows.copy()
    augmented = numpy.arange(ROWS) % 3 == 2
    source = numpy.where(augmented, numpy.arange(ROWS) - 1, numpy.arange(ROWS))
    rows["clip_id"] = [f"c{row}" for row in source]
    rows["start_seconds"] = source / 3
    # Rows 5, 35, ...: cut at an offset of their own.
    own_offset = augmented & (numpy.arange(ROWS) % 30 == 5)
    rows.loc[own_offset, "start_seconds"] += 0.125
    rows["view"] = numpy.where(augmented, "augmented", "clean")
    rows["view_parameters"] = [
        json.dumps({"gain_db": 0.0, **({"device": "d.wav"} if row % 2 else {})}) if is_view else ""
        for row, is_view in enumerate(augmented)
    ]
    rows["dataset"] = numpy.where(numpy.arange(ROWS) % 4 == 0, "inside", "outside")
    rows["tags"] = ["a;b" if row % 10 == 0 else "a" if row % 2 else "" for row in range(ROWS)]
    rows["cloud"] = cloud
    rows["split"] = ["validation" if row // 3 % 5 == 4 else "train" for row in range(ROWS)]
    return replace(made, rows=rows, embedding=embedding)


def make(folder: Path) -> StoreReader:
    """Write the store and open it."""
    return StoreReader(made_store.make_store(folder, content(), shard_rows=24))
