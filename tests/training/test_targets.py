"""Target transforms against scikit-learn's, fitted in one go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from pipeline.config import TargetsConfig
from pipeline.errors import ConfigError, MissingArtifactError, TrainingError, WeightsError
from pipeline.training import targets

ROWS, DIM = 400, 24


@pytest.fixture
def embeddings() -> np.ndarray:
    generator = np.random.default_rng(11)
    spectrum = generator.standard_normal((ROWS, DIM)) * np.geomspace(5, 0.01, DIM)
    mixed = spectrum @ np.linalg.qr(generator.standard_normal((DIM, DIM)))[0] + 50.0
    return mixed.astype(np.float32)


def _pieces(embeddings: np.ndarray, *cuts: int) -> list[np.ndarray]:
    return np.split(embeddings, cuts)


def test_standardise_equals_scikit_learn(embeddings: np.ndarray) -> None:
    config = TargetsConfig(transform="standardise", std_floor=0.0)
    transform, summary = targets.fit(_pieces(embeddings, 7, 7, 300), config)
    want = StandardScaler().fit_transform(embeddings.astype(np.float64))
    np.testing.assert_allclose(transform(torch.from_numpy(embeddings)).numpy(), want, atol=2e-3)
    assert summary["rows"] == ROWS
    assert transform.output_dim == DIM


def test_whiten_equals_scikit_learn_up_to_sign(embeddings: np.ndarray) -> None:
    transform, summary = targets.fit(
        _pieces(embeddings, 100, 250), TargetsConfig(transform="whiten", components=6, std_floor=0.0)
    )
    standard = StandardScaler().fit_transform(embeddings.astype(np.float64))
    oracle = PCA(6, whiten=True, svd_solver="full").fit(standard)
    # scikit-learn divides by the sample deviation (n - 1), the population's is divided by here.
    want = oracle.transform(standard) * np.sqrt(ROWS / (ROWS - 1))
    got = transform(torch.from_numpy(embeddings)).numpy()
    want *= np.sign((want * got).sum(axis=0))
    np.testing.assert_allclose(got, want, atol=5e-3)
    assert summary["variance_kept"] == pytest.approx(oracle.explained_variance_ratio_.sum(), rel=1e-6)


def test_whitened_training_rows_have_unit_covariance(embeddings: np.ndarray) -> None:
    transform, _ = targets.fit(_pieces(embeddings, 50), TargetsConfig(transform="whiten", components=10))
    got = transform(torch.from_numpy(embeddings)).double().numpy()
    np.testing.assert_allclose(np.cov(got.T, bias=True), np.eye(10), atol=2e-3)
    np.testing.assert_allclose(got.mean(axis=0), 0, atol=2e-3)


def test_floor_is_added_to_the_deviation(embeddings: np.ndarray) -> None:
    transform, _ = targets.fit([embeddings], TargetsConfig(transform="standardise", std_floor=0.5))
    np.testing.assert_allclose(
        transform.scale.numpy(), embeddings.astype(np.float64).std(axis=0) + 0.5, rtol=1e-5
    )


def test_the_cut_into_shards_does_not_matter(embeddings: np.ndarray) -> None:
    config = TargetsConfig(transform="whiten", components=8)
    one, _ = targets.fit([embeddings], config)
    many, _ = targets.fit(_pieces(embeddings, 1, 2, 5, 390), config)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(many.state_dict()[name], value, atol=1e-5, rtol=1e-5)


def test_none_is_the_identity(embeddings: np.ndarray) -> None:
    transform, _ = targets.fit([embeddings], TargetsConfig(transform="none"))
    assert torch.equal(transform(torch.from_numpy(embeddings)), torch.from_numpy(embeddings))
    assert transform.output_dim == DIM


@pytest.mark.parametrize("kind", ["standardise", "whiten"])
def test_constant_dimensions_stay_finite(embeddings: np.ndarray, kind: str) -> None:
    embeddings[:, 3] = 7.0
    config = TargetsConfig(transform=kind, components=None, std_floor=0.0)
    transform, _ = targets.fit([embeddings], config)
    got = transform(torch.from_numpy(embeddings))
    assert torch.isfinite(got).all()
    assert transform.output_dim == (DIM if kind == "standardise" else DIM - 1)


def test_more_components_than_directions_is_refused(embeddings: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="span 9 directions") as raised:
        targets.fit([embeddings[:10]], TargetsConfig(components=16))
    assert raised.value.run == "--set targets.components=9"


def test_no_rows_is_refused() -> None:
    with pytest.raises(TrainingError):
        targets.fit([], TargetsConfig())


def test_fidelity_falls_with_fewer_components(embeddings: np.ndarray) -> None:
    held_out = torch.from_numpy(embeddings[300:])
    figures = {}
    for components in (2, DIM):
        transform, _ = targets.fit([embeddings[:300]], TargetsConfig(components=components, std_floor=0.0))
        figures[components] = targets.fidelity(transform, held_out)
    assert figures[DIM]["held_out_cosine"] == pytest.approx(1, abs=1e-4)
    assert figures[2]["held_out_cosine"] < 0.99
    assert 0 <= figures[2]["held_out_neighbour_overlap"] <= 1


@pytest.mark.parametrize("kind", ["none", "standardise", "whiten"])
def test_saved_and_loaded_is_the_same(embeddings: np.ndarray, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "targets.safetensors"
    held_out = torch.from_numpy(embeddings[300:])
    transform, summary = targets.fit_and_save(
        [embeddings[:300]], held_out, TargetsConfig(transform=kind, components=5), path
    )
    assert torch.equal(targets.load(path)(held_out), transform(held_out))
    with safetensors.safe_open(str(path), "pt") as file:
        assert file.metadata()["transform"] == kind
    assert summary["target_dim"] == (5 if kind == "whiten" else DIM)


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError):
        targets.load(tmp_path / "targets.safetensors")
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError):
        targets.load(tmp_path / "other.safetensors")
