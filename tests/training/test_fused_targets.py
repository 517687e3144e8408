"""Several teachers' targets against scikit-learn fitted on each teacher by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from pipeline.config import TargetsConfig
from pipeline.training import targets

ROWS, WIDTHS = 300, (24, 5, 40)


@pytest.fixture(scope="module")
def parts() -> list[np.ndarray]:
    """Three teachers of other widths and loudness, rank 3 in the second."""
    generator = np.random.default_rng(5)
    made = []
    for width, loudness in zip(WIDTHS, (1.0, 100.0, 0.01), strict=True):
        rank = min(width, 3) if width == 5 else width
        mixing = generator.standard_normal((rank, width)) * np.geomspace(3, 0.1, rank)[:, None]
        made.append((generator.standard_normal((ROWS, rank)) @ mixing + 2) * loudness)
    return made


def fitted(parts: list[np.ndarray], **config: object) -> tuple[targets.TargetTransform, torch.Tensor]:
    rows = np.concatenate(parts, axis=1).astype(np.float32)
    full = TargetsConfig(std_floor=0.0, teachers=("a", "b", "c"), **config)  # type: ignore[arg-type]
    transform, summary = targets.fit(np.split(rows, [100, 170]), full, WIDTHS)
    assert summary["target_dim"] == transform.output_dim
    return transform, transform(torch.from_numpy(rows))


def columns(values: torch.Tensor, widths: list[int]) -> list[np.ndarray]:
    return [one.double().numpy() for one in values.split(widths, dim=1)]


@pytest.mark.parametrize("kind", ["pca", "whiten"])
def test_each_teacher_is_projected_by_itself(parts: list[np.ndarray], kind: str) -> None:
    transform, got = fitted(parts, transform=kind, components=8)
    # The second teacher spans three directions and gives those; a lone one would be refused.
    for part, found, kept in zip(parts, columns(got, [8, 3, 8]), (8, 3, 8), strict=True):
        standard = StandardScaler().fit_transform(part.astype(np.float32).astype(np.float64))
        oracle = PCA(kept, whiten=kind == "whiten", svd_solver="full").fit(standard)
        want = oracle.transform(standard) * (np.sqrt(ROWS / (ROWS - 1)) if kind == "whiten" else 1)
        want *= np.sign((want * found).sum(axis=0))
        np.testing.assert_allclose(found, want, atol=2e-2 * np.abs(want).max())
    assert transform.kind == kind


@pytest.mark.parametrize("kind", ["none", "standardise", "pca", "whiten"])
def test_a_squared_distance_is_the_weighted_sum(parts: list[np.ndarray], kind: str) -> None:
    weights = (1.0, 4.0, 7.0)
    _, plain = fitted(parts, transform=kind, components=6)
    _, weighted = fitted(parts, transform=kind, components=6, teacher_weights=weights)
    widths = list(WIDTHS) if kind in ("none", "standardise") else [6, 3, 6]
    each = [pdist(one[:40], "sqeuclidean") for one in columns(plain, widths)]
    wanted = sum(weight * one for weight, one in zip(np.array(weights) / 4, each, strict=True))
    np.testing.assert_allclose(pdist(weighted[:40].double().numpy(), "sqeuclidean"), wanted, rtol=2e-3)


def test_no_teacher_drowns_the_others(parts: list[np.ndarray]) -> None:
    """Loudness is none of the targets' business: whitened, the parts have equal variance a component."""
    _, got = fitted(parts, transform="whiten", components=3)
    np.testing.assert_allclose(got.double().numpy().var(axis=0), 1, atol=1e-2)


def test_back_to_the_standardised_rows(parts: list[np.ndarray], tmp_path: Path) -> None:
    transform, got = fitted(parts, transform="whiten", components=None, teacher_weights=(1, 2, 3))
    rows = torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))
    torch.testing.assert_close(
        transform.reconstructed(got), transform.standardised(rows), atol=2e-2, rtol=1e-2
    )
    transform.save(tmp_path / "targets.safetensors", {})
    assert torch.equal(targets.load(tmp_path / "targets.safetensors")(rows), got)
