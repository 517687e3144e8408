"""Soft whitening, shrinkage and random projections against scikit-learn and literal formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.covariance import shrunk_covariance
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from sklearn.random_projection import johnson_lindenstrauss_min_dim

from pipeline.config import TargetsConfig
from pipeline.errors import ConfigError
from pipeline.training import targets

ROWS, DIM = 500, 18


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    generator = np.random.default_rng(2)
    mixed = generator.standard_normal((ROWS, DIM)) * np.geomspace(4, 0.2, DIM)
    return np.asarray(mixed @ generator.standard_normal((DIM, DIM)) + 3.0, dtype=np.float32)


def fitted(rows: np.ndarray, **config: object) -> np.ndarray:
    transform, _ = targets.fit(np.split(rows, [90, 333]), TargetsConfig(std_floor=0.0, **config))  # type: ignore[arg-type]
    return transform(torch.from_numpy(rows)).double().numpy()


def standard(rows: np.ndarray) -> np.ndarray:
    return np.asarray(StandardScaler().fit_transform(rows.astype(np.float64)))


@pytest.mark.parametrize("power", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_soft_whitening_leaves_this_power_of_each_variance(rows: np.ndarray, power: float) -> None:
    """Multiplied by eigenvalue^-a, a component of variance eigenvalue has the variance eigenvalue^(1 - 2a)."""
    oracle = PCA(7, svd_solver="full").fit(standard(rows))
    eigenvalues = oracle.explained_variance_ * (ROWS - 1) / ROWS
    got = fitted(rows, transform="whiten", components=7, whiten_power=power)
    np.testing.assert_allclose(got.var(axis=0), eigenvalues ** (1 - 2 * power), rtol=1e-3)
    want = oracle.transform(standard(rows)) * eigenvalues**-power
    np.testing.assert_allclose(got, want * np.sign((want * got).sum(axis=0)), atol=3e-3 * np.abs(want).max())


def test_the_ends_of_the_power_are_pca_and_white(rows: np.ndarray) -> None:
    soft = fitted(rows, transform="whiten", components=5, whiten_power=0.0)
    np.testing.assert_array_equal(soft, fitted(rows, transform="pca", components=5))
    np.testing.assert_allclose(np.cov(fitted(rows, components=5).T, bias=True), np.eye(5), atol=2e-3)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.6, 1.0])
def test_shrunk_whitening_equals_scikit_learns_shrunk_covariance(rows: np.ndarray, shrinkage: float) -> None:
    """With every component, products of whitened rows are x S^-1 y with the shrunk covariance S."""
    got = fitted(rows, transform="whiten", components=None, shrinkage=shrinkage)
    scaled = standard(rows)
    inverse = np.linalg.inv(shrunk_covariance(np.cov(scaled.T, bias=True), shrinkage))
    np.testing.assert_allclose(got @ got.T, scaled @ inverse @ scaled.T, atol=2e-2)


@pytest.mark.parametrize("changes", [{"whiten_power": 0.2}, {"shrinkage": 0.3}, {"transform": "random"}])
def test_targets_go_back_to_the_rows_they_determine(rows: np.ndarray, changes: dict[str, object]) -> None:
    config = TargetsConfig(**{"components": DIM, "std_floor": 0.0, **changes})  # type: ignore[arg-type]
    transform, summary = targets.fit([rows], config)
    given = torch.from_numpy(rows)
    torch.testing.assert_close(
        transform.reconstructed(transform(given)), transform.standardised(given), atol=1e-2, rtol=1e-2
    )
    assert summary["variance_kept"] == pytest.approx(1.0)


def test_random_projection_keeps_distances() -> None:
    """Johnson and Lindenstrauss: with scikit-learn's bound on the width, every distance is kept to 1 +- eps."""
    samples, eps = 25, 0.5
    width = int(johnson_lindenstrauss_min_dim(samples, eps=eps))
    wide = np.random.default_rng(4).standard_normal((samples, 3 * width)).astype(np.float32)
    got = pdist(fitted(wide, transform="random", components=width), "sqeuclidean")
    ratio = got / pdist(standard(wide), "sqeuclidean")
    assert ratio.min() > 1 - eps
    assert ratio.max() < 1 + eps
    assert ratio.mean() == pytest.approx(1.0, abs=0.1)


def test_random_projection_is_a_function_of_its_seed(rows: np.ndarray) -> None:
    first = fitted(rows, transform="random", components=6, seed=1)
    np.testing.assert_array_equal(first, fitted(rows, transform="random", components=6, seed=1))
    assert np.abs(first - fitted(rows, transform="random", components=6, seed=2)).max() > 0.1
    twice = np.concatenate([rows, rows], axis=1)
    config = TargetsConfig(transform="random", components=6, teachers=("a", "b"))
    both, _ = targets.fit([twice], config, (DIM, DIM))
    left, right = both(torch.from_numpy(twice)).split(6, dim=1)
    assert not torch.allclose(left, right, atol=0.1)


def test_variance_kept_by_random_directions(rows: np.ndarray) -> None:
    """The share of variance within their span: what least squares from the projection explains."""
    config = TargetsConfig(transform="random", components=5, std_floor=0.0)
    transform, summary = targets.fit([rows], config)
    scaled, got = standard(rows), fitted(rows, transform="random", components=5)
    directions = transform.matrix.double().numpy()
    inside = scaled @ directions @ np.linalg.solve(directions.T @ directions, directions.T)
    assert summary["variance_kept"] == pytest.approx((inside**2).sum() / (scaled**2).sum(), rel=1e-4)
    np.testing.assert_allclose(got @ np.linalg.pinv(directions), inside, atol=1e-3)


def test_more_random_directions_than_dimensions_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="18 dimensions") as raised:
        targets.fit([rows], TargetsConfig(transform="random", components=64))
    assert raised.value.run == "--set targets.components=18"
    with pytest.raises(ValueError, match="needs components"):
        TargetsConfig(transform="random", components=None)


@pytest.mark.parametrize("kind", ["none", "standardise", "pca", "whiten", "random"])
def test_heads_keep_teachers_apart(rows: np.ndarray, tmp_path: Path, kind: str) -> None:
    """Each teacher's target is what it would be alone, whatever the weights, and the widths are saved."""
    loud = np.concatenate([rows[:, :10], 40 * rows[:, 10:]], axis=1)
    config = TargetsConfig(
        fusion="heads", teachers=("a", "b"), teacher_weights=(1.0, 9.0), transform=kind, components=4,
        std_floor=0.0,
    )  # fmt: skip
    transform, _ = targets.fit([loud], config, (10, 8))
    wanted = (10, 8) if kind in ("none", "standardise") else (4, 4)
    assert transform.widths == wanted
    one = config.model_copy(update={"fusion": "concat"})
    assert targets.fit([loud], one, (10, 8))[0].widths == (sum(wanted),)
    transform.save(tmp_path / "targets.safetensors", {})
    assert targets.load(tmp_path / "targets.safetensors").widths == wanted
    if kind == "random":
        return  # the second teacher's directions are others than a lone one's
    parts = transform(torch.from_numpy(loud)).split(wanted, dim=1)
    for part, alone in zip(parts, (loud[:, :10], loud[:, 10:]), strict=True):
        lone, _ = targets.fit([alone], TargetsConfig(transform=kind, components=4, std_floor=0.0))
        torch.testing.assert_close(part, lone(torch.from_numpy(alone)), rtol=1e-4, atol=1e-4)
