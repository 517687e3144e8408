"""Nearest neighbours against scikit-learn's brute force, whatever the blocks; resumed; approximate."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from pipeline.errors import ConfigError, MissingDependencyError
from pipeline.training import neighbour_search
from pipeline.training.neighbour_search import nearest


def rows_of(count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((20, 16)) * 2
    drawn = centres[generator.integers(0, 20, count)] + generator.standard_normal((count, 16))
    return np.asarray(drawn, dtype=np.float32)


def brute_force(rows: np.ndarray, count: int) -> np.ndarray:
    search = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(
        rows.astype(np.float64)
    )
    return np.asarray(search.kneighbors(return_distance=False))


@pytest.mark.parametrize("blocks", [(4_096, 16_384), (64, 50), (37, 3)])
def test_exact_search_equals_scikit_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: tuple[int, int]
) -> None:
    monkeypatch.setattr(neighbour_search, "QUERY_ROWS", blocks[0])
    monkeypatch.setattr(neighbour_search, "BLOCK_ROWS", blocks[1])
    rows = rows_of(200)
    got = nearest(rows, 5, tmp_path)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, brute_force(rows, 5))


def test_a_search_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbour_search, "QUERY_ROWS", 50)
    rows = rows_of(200)
    whole = nearest(rows, 4, tmp_path)
    (tmp_path / "neighbours-150.npy").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    assert len(kept) == 3
    np.testing.assert_array_equal(nearest(rows, 4, tmp_path), whole)
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}.items()


def test_approximate_search_finds_nearly_all(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    rows = rows_of(6_000)
    got = nearest(rows, 10, tmp_path, search="approximate")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(len(rows), dtype=np.float32)
    want = np.argpartition(-cosines, 10, axis=1)[:, :10]
    assert not (got == np.arange(len(rows))[:, None]).any()
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(got.tolist(), want.tolist(), strict=True)])
    assert recall > 0.9


def test_approximate_search_without_faiss_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match="needs faiss") as raised:
        nearest(rows_of(50), 3, tmp_path, search="approximate")
    assert "ossicle[neighbours]" in str(raised.value.run)


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no 10 neighbours"):
        nearest(rows_of(10), 10, tmp_path)
