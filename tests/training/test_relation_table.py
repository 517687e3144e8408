"""Anchors and neighbours as an artifact: of training rows alone, made once, named by what they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

from pipeline import artifact
from pipeline.config import RelationsConfig
from pipeline.errors import ConfigError, TrainingError
from pipeline.training.relation_table import RelationTable, relation_table

STORE_ROWS = 300
INPUTS = {"store": "a" * 64, "teacher": "b" * 64}


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    generator = np.random.default_rng(1)
    centres = generator.standard_normal((6, 8)) * 4
    drawn = centres[generator.integers(0, 6, STORE_ROWS)] + generator.standard_normal((STORE_ROWS, 8))
    return np.asarray(drawn, dtype=np.float32)


MASK = np.arange(STORE_ROWS) % 4 != 1


def table_of(root: Path, rows: np.ndarray, reads: list[int] | None = None, **config: Any) -> RelationTable:
    def pieces() -> Iterator[np.ndarray]:
        for start in range(0, STORE_ROWS, 70):
            if reads is not None:
                reads.append(start)
            yield rows[start : start + 70][MASK[start : start + 70]]

    return relation_table(
        root, pieces, MASK, RelationsConfig(**{"anchors": 6, "neighbours": 4, **config}), INPUTS, anchors=True,
        neighbours=True,
    )  # fmt: skip


def test_neighbours_are_store_rows_of_training(tmp_path: Path, rows: np.ndarray) -> None:
    table = table_of(tmp_path, rows)
    of_store = np.flatnonzero(MASK)
    search = NearestNeighbors(n_neighbors=4, metric="cosine", algorithm="brute").fit(rows[MASK])
    wanted = of_store[search.kneighbors(return_distance=False)]
    np.testing.assert_array_equal(table.neighbours[torch.from_numpy(MASK)].numpy(), wanted)
    assert (table.neighbours[torch.from_numpy(~MASK)] == -1).all()
    assert (table.anchor_of[torch.from_numpy(~MASK)] == -1).all()


def test_centres_are_as_good_as_scikit_learns_kmeans(tmp_path: Path, rows: np.ndarray) -> None:
    table = table_of(tmp_path, rows)
    distances = cdist(rows[MASK], table.anchors.numpy())
    np.testing.assert_array_equal(table.anchor_of[torch.from_numpy(MASK)].numpy(), distances.argmin(axis=1))
    best = KMeans(6, n_init=5, random_state=0).fit(rows[MASK]).inertia_
    assert (distances.min(axis=1) ** 2).sum() < 1.1 * best


def test_anchor_rows_stand_for_themselves(tmp_path: Path, rows: np.ndarray) -> None:
    table = table_of(tmp_path, rows, anchor_kind="rows")
    chosen = np.flatnonzero(table.anchor_of.numpy() >= 0)
    assert len(chosen) == 6
    assert MASK[chosen].all()
    np.testing.assert_array_equal(table.anchors[table.anchor_of[chosen].long()].numpy(), rows[chosen])


def test_made_once_and_anew_for_anything_else(tmp_path: Path, rows: np.ndarray) -> None:
    reads: list[int] = []
    first = table_of(tmp_path, rows, reads)
    again = table_of(tmp_path, rows, reads)
    assert len(reads) == 5
    assert torch.equal(first.neighbours, again.neighbours)
    assert torch.equal(first.anchors, again.anchors)
    table_of(tmp_path, rows, reads, seed=1)
    table_of(tmp_path, rows, reads, neighbours=3)
    assert len(reads) == 15
    made = sorted((tmp_path / "relations").iterdir())
    assert len(made) == 3
    for folder in made:
        assert artifact.read(folder).kind == "relations"
        assert sorted(p.name for p in folder.iterdir() if p.name != ".lock") == [
            "artifact.json", "relations.safetensors",
        ]  # fmt: skip


def test_an_unfinished_one_is_made_whole(tmp_path: Path, rows: np.ndarray) -> None:
    want = table_of(tmp_path, rows)
    (folder,) = (tmp_path / "relations").iterdir()
    (folder / "artifact.json").unlink()
    (folder / "relations.safetensors").write_bytes(b"half")
    assert torch.equal(table_of(tmp_path, rows).neighbours, want.neighbours)


def test_what_cannot_be_is_refused(tmp_path: Path, rows: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="anchors = 999"):
        table_of(tmp_path, rows, anchors=999)
    with pytest.raises(TrainingError, match="not those that were counted"):
        relation_table(
            tmp_path,
            lambda: iter([rows[:5]]),
            MASK,
            RelationsConfig(),
            INPUTS,
            anchors=True,
            neighbours=False,
        )
