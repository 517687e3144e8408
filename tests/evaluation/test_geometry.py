"""Neighbours, debiased CKA, ranks of distances and hubs against sorting, kernels and scipy."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import skew, spearmanr
from sklearn.neighbors import NearestNeighbors

from pipeline.errors import OssicleError
from pipeline.evaluation import geometry
from pipeline.evaluation.structure import linear_cka

CLIPS = 45


def spaces() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    a = generator.standard_normal((CLIPS, 9)) + 0.5
    return a, a @ generator.standard_normal((9, 6)) + 0.8 * generator.standard_normal((CLIPS, 6))


def unbiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Return Song et al.'s estimator, their equation 5, term by term."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((np.trace(k @ m) + middle - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3)))


def test_nearest_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    a, _ = spaces()
    want = NearestNeighbors(n_neighbors=7, metric="cosine").fit(a).kneighbors(return_distance=False)
    np.testing.assert_array_equal(geometry.nearest(a, 7), want)
    monkeypatch.setattr(geometry, "BLOCK_ROWS", 8)
    np.testing.assert_array_equal(geometry.nearest(a, 7), want)


def test_overlap_at_every_k_is_that_of_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "BLOCK_ROWS", 10)
    near = [geometry.nearest(x, 20) for x in spaces()]
    found = geometry.overlap_at(near[0], near[1], (1, 5, 20))
    for k in (1, 5, 20):
        shared = [len(set(p[:k]) & set(q[:k])) / k for p, q in zip(*near, strict=True)]
        assert found[k] == pytest.approx(np.mean(shared))
    assert geometry.overlap_at(near[0], near[0], (1, 20)) == {1: 1.0, 20: 1.0}
    with pytest.raises(OssicleError, match="do not fit"):
        geometry.overlap_at(near[0], near[1], (21,))
    with pytest.raises(OssicleError, match="too few clips"):
        geometry.nearest(spaces()[0][:5], 5)


def test_debiased_cka_is_the_ratio_of_unbiased_kernels() -> None:
    a, b = spaces()
    k, m = a @ a.T, b @ b.T
    want = unbiased_hsic(k, m) / np.sqrt(unbiased_hsic(k, k) * unbiased_hsic(m, m))
    assert geometry.debiased_cka(a, b) == pytest.approx(want, abs=1e-12)
    assert geometry.debiased_cka(a, 3 * a + 100) == pytest.approx(1.0)
    assert geometry.debiased_cka(a, np.ones_like(b)) == 0.0


def test_wide_noise_is_alike_to_the_biased_kind_alone() -> None:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(20):
        a, b = generator.standard_normal((20, 400)), generator.standard_normal((20, 400))
        found.append(geometry.debiased_cka(a, b))
        assert linear_cka(a, b) > 0.9
    assert abs(np.mean(found)) < 0.1


def test_rank_correlation_of_all_distances_is_scipys() -> None:
    a, b = spaces()
    want = spearmanr(pdist(a, "cosine"), pdist(b, "cosine")).statistic
    assert geometry.distance_correlation(a, b) == pytest.approx(want, abs=1e-9)
    assert geometry.distance_correlation(a, 2 * a) == pytest.approx(1.0)
    assert np.isnan(geometry.distance_correlation(a, np.ones_like(b)))


def test_drawn_pairs_are_different_pairs_and_seeded() -> None:
    first, second = geometry._drawn_pairs(CLIPS, 300, 4)
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    assert len(pairs) == 300
    assert pairs < set(combinations(range(CLIPS), 2))
    everything = geometry._drawn_pairs(CLIPS, CLIPS * (CLIPS - 1) // 2, 0)
    assert set(zip(*(x.tolist() for x in everything), strict=True)) == set(combinations(range(CLIPS), 2))
    a, b = spaces()
    part = [geometry.distance_correlation(a, b, pairs=700, seed=seed) for seed in (1, 1, 2)]
    assert part[0] == part[1] != part[2]
    assert part[0] == pytest.approx(geometry.distance_correlation(a, b), abs=0.1)


def test_hubs_by_counting() -> None:
    a, _ = spaces()
    near = geometry.nearest(a, 5)
    counts = [sum(clip in row for row in near.tolist()) for clip in range(CLIPS)]
    found = geometry.hubness(near)
    assert found.skewness == pytest.approx(skew(counts))
    assert found.orphan_share == pytest.approx(counts.count(0) / CLIPS)
    assert (found.largest, found.neighbours) == (max(counts), 5)
    ring = (np.arange(6)[:, None] + 1) % 6
    assert geometry.hubness(ring).as_json() == {
        "neighbours": 1, "skewness": 0.0, "orphan_share": 0.0, "largest": 1,
    }  # fmt: skip


def test_agreement_of_neighbours_class_by_class() -> None:
    near = np.array([[1, 2], [0, 3], [0, 1], [2, 0]])
    labels = np.array(["a", "a", "b", "b"])
    assert geometry.label_agreement(near, labels) == {"a": (0.5 + 0.5) / 2, "b": (0.0 + 0.5) / 2}


def test_other_clips_are_refused() -> None:
    a, b = spaces()
    for compare in (geometry.debiased_cka, geometry.distance_correlation):
        with pytest.raises(OssicleError, match="different clips"):
            compare(a, b[:-1])
    with pytest.raises(OssicleError, match="too few clips"):
        geometry.debiased_cka(a[:3], b[:3])
    with pytest.raises(OssicleError, match="too few clips"):
        geometry.distance_correlation(a[:2], b[:2])
