"""CKA, neighbour overlap, effective rank and projection: laws, and formulas written out."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.stats import ortho_group

from pipeline.errors import MissingDependencyError, OssicleError
from pipeline.evaluation.projection import tsne, umap
from pipeline.evaluation.structure import effective_rank, linear_cka, neighbour_overlap


def spaces(clips: int = 40) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    a = generator.standard_normal((clips, 7)) + 3
    return a, a @ generator.standard_normal((7, 5)) + generator.standard_normal((clips, 5))


def test_cka_equals_the_kernel_definition() -> None:
    a, b = spaces()
    centring = np.eye(len(a)) - 1 / len(a)
    k, m = centring @ a @ a.T @ centring, centring @ b @ b.T @ centring
    want = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert linear_cka(a, b) == pytest.approx(want, abs=1e-12)


def test_cka_ignores_rotation_scale_and_shift() -> None:
    a, b = spaces()
    turned = 4.2 * a @ ortho_group.rvs(7, random_state=1) - 11
    assert linear_cka(turned, b) == pytest.approx(linear_cka(a, b), abs=1e-9)
    assert linear_cka(a, turned) == pytest.approx(1.0)
    assert linear_cka(a, np.ones_like(b)) == 0.0
    assert linear_cka(np.random.default_rng(0).permutation(a), b) < 0.5 * linear_cka(a, b)


def test_neighbour_overlap_equals_sorting_every_pair() -> None:
    a, b = spaces()
    shared = 0
    for i in range(len(a)):
        sets = []
        for x in (a, b):
            cosine = [x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for j in range(len(x))]
            order = sorted((j for j in range(len(x)) if j != i), key=lambda j, c=cosine: -c[j])
            sets.append(set(order[:6]))
        shared += len(sets[0] & sets[1])
    assert neighbour_overlap(a, b, 6) == pytest.approx(shared / (6 * len(a)))
    assert neighbour_overlap(a, 3 * a, 6) == 1.0


def test_effective_rank_of_known_spectra() -> None:
    generator = np.random.default_rng(1)
    basis = np.linalg.qr(generator.standard_normal((60, 6)) - 0.0)[0]
    basis -= basis.mean(axis=0)
    basis = np.linalg.qr(basis)[0]
    assert effective_rank(basis * 5) == pytest.approx(6.0)
    assert effective_rank(basis[:, :1] @ np.ones((1, 4))) == pytest.approx(1.0, abs=1e-6)
    assert effective_rank(np.full((10, 3), 0.1)) == 0.0
    share = np.array([0.7, 0.2, 0.1])
    assert effective_rank(basis[:, :3] * share) == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_different_or_too_few_clips_are_refused() -> None:
    a, b = spaces()
    with pytest.raises(OssicleError, match="different clips"):
        linear_cka(a, b[:-1])
    with pytest.raises(OssicleError, match="too few clips"):
        neighbour_overlap(a[:5], b[:5], 5)
    with pytest.raises(OssicleError, match="too few clips"):
        tsne(a[:4])


def clusters() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    centres = np.repeat(10 * np.eye(3, 8), 15, axis=0)
    return centres + 0.3 * generator.standard_normal((45, 8)), np.repeat(np.arange(3), 15)


def own_cluster_is_nearest(mapped: np.ndarray, cluster: np.ndarray) -> bool:
    distance = np.linalg.norm(mapped[:, None] - mapped[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return bool((cluster[distance.argmin(axis=1)] == cluster).all())


def test_tsne_keeps_clusters_apart_and_is_seeded() -> None:
    embedding, cluster = clusters()
    mapped = tsne(embedding, seed=4)
    assert mapped.shape == (45, 2)
    np.testing.assert_array_equal(mapped, tsne(embedding, seed=4))
    assert own_cluster_is_nearest(mapped, cluster)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:n_jobs value:UserWarning")
def test_umap_keeps_clusters_apart_and_is_seeded() -> None:
    pytest.importorskip("umap")
    embedding, cluster = clusters()
    mapped = umap(embedding, seed=4)
    assert mapped.shape == (45, 2)
    np.testing.assert_array_equal(mapped, umap(embedding, seed=4))
    assert own_cluster_is_nearest(mapped, cluster)


def test_umap_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingDependencyError, match="umap-learn") as caught:
        umap(clusters()[0])
    assert "ossicle[umap]" in str(caught.value)
    with pytest.raises(OssicleError, match="too few clips"):
        umap(np.zeros((4, 2)))
