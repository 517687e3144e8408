"""Banks against scikit-learn's classifiers, and the enrolment formula against the mean of everything taught."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances_argmin
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize

from pipeline.errors import ConfigError
from pipeline.prototypes.bank import (
    Features,
    Int8Rows,
    Metric,
    NeighbourBank,
    PrototypeBank,
    decided,
    similarities,
)

DIM, CLASSES, SHOTS = 24, 6, 5


def clips(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings (number, DIM) of overlapping classes far from the origin, and their classes."""
    centres = np.random.default_rng(0).normal(0.0, 1.0, (CLASSES, DIM)) + 3.0
    classes = np.arange(number) % CLASSES
    noise = np.random.default_rng(seed).normal(0.0, 1.2, (number, DIM))
    return (centres[classes] + noise).astype(np.float32), classes


def test_euclidean_prototypes_are_scikit_learns_nearest_centroid() -> None:
    taught, classes = clips(SHOTS * CLASSES, seed=1)
    asked, _ = clips(200, seed=2)
    bank = PrototypeBank.empty("euclidean", CLASSES, DIM).enrolled(taught, classes)
    want = NearestCentroid().fit(taught, classes)
    np.testing.assert_allclose(bank.prototypes, want.centroids_, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(bank.predict(asked), want.predict(asked))


def test_cosine_prototypes_are_the_nearest_centroid_on_the_sphere() -> None:
    taught, classes = clips(SHOTS * CLASSES, seed=1)
    asked, _ = clips(200, seed=2)
    features = Features.fitted("cosine", "centred", taught)
    bank = PrototypeBank.empty("cosine", CLASSES, DIM).enrolled(features(taught), classes)
    on_sphere = normalize((taught - taught.mean(axis=0)).astype(np.float64))
    means = np.stack([normalize(on_sphere[classes == c].mean(axis=0)[None])[0] for c in range(CLASSES)])
    of_asked = normalize((asked - taught.mean(axis=0)).astype(np.float64))
    np.testing.assert_array_equal(bank.predict(features(asked)), pairwise_distances_argmin(of_asked, means))
    # Among points at length 1 the nearest is the one of the highest cosine.
    np.testing.assert_allclose(bank.scores(features(asked)), of_asked @ means.T, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("metric", "neighbours"), [("cosine", 1), ("cosine", 5), ("euclidean", 3)])
def test_neighbours_vote_as_scikit_learns(metric: Metric, neighbours: int) -> None:
    taught, classes = clips(SHOTS * CLASSES, seed=1)
    asked, _ = clips(200, seed=2)
    features = Features(metric, np.zeros(DIM, np.float32), np.ones(DIM, np.float32))
    bank = NeighbourBank(metric, np.zeros((0, DIM), np.float32), np.zeros(0, np.int64), CLASSES, neighbours)
    bank = bank.enrolled(features(taught), classes)
    want = KNeighborsClassifier(neighbours, metric=metric, algorithm="brute").fit(taught, classes)
    np.testing.assert_array_equal(bank.predict(features(asked)), want.predict(asked))
    np.testing.assert_allclose(bank.scores(features(asked)), want.predict_proba(asked), atol=1e-6)


def test_standardised_features_are_scikit_learns_scaler() -> None:
    taught, _ = clips(60, seed=1)
    want = StandardScaler().fit(taught)
    found = Features.fitted("euclidean", "standardised", taught)
    np.testing.assert_allclose(found(taught), want.transform(taught), rtol=1e-4, atol=1e-5)
    # A dimension that never moved is not blown up to noise.
    taught[:, 3] = 1.0
    assert np.abs(Features.fitted("euclidean", "standardised", taught)(taught + 1e-6)[:, 3]).max() < 1e-2


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_enrolling_one_by_one_or_at_once_is_the_mean_of_all(metric: Metric) -> None:
    taught, classes = clips(3 * CLASSES + 1, seed=3)
    x = Features.fitted(metric, "raw", taught)(taught)
    at_once = PrototypeBank.empty(metric, CLASSES, DIM).enrolled(x, classes)
    one_by_one = PrototypeBank.empty(metric, CLASSES, DIM)
    for row in np.random.default_rng(0).permutation(len(x)):
        one_by_one = one_by_one.enrolled(x[[row]], classes[[row]])
    want = np.stack([x[classes == c].astype(np.float64).mean(axis=0) for c in range(CLASSES)])
    np.testing.assert_allclose(at_once.prototypes, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one_by_one.prototypes, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one_by_one.counts, np.bincount(classes, minlength=CLASSES))


def test_an_empty_class_is_never_chosen_and_minus_one_teaches_nothing() -> None:
    taught, _ = clips(6, seed=4)
    bank = PrototypeBank.empty("cosine", 3, DIM).enrolled(taught, np.array([0, 0, 2, 2, -1, -1]))
    assert bank.counts.tolist() == [2.0, 0.0, 2.0]
    assert np.isneginf(bank.scores(taught)[:, 1]).all()
    assert set(bank.predict(taught)) <= {0, 2}
    with pytest.raises(ConfigError, match="none of the bank's"):
        bank.enrolled(taught, np.array([0, 0, 0, 0, 0, 3]))


def test_below_the_threshold_a_sound_is_of_no_class() -> None:
    scores = np.array([[0.2, 0.9], [0.1, 0.3], [-np.inf, 0.5]])
    assert decided(scores, 0.5).tolist() == [1, -1, 1]


def test_a_neighbour_bank_with_too_few_rows_says_so() -> None:
    taught, classes = clips(2, seed=5)
    bank = NeighbourBank("cosine", taught, classes.astype(np.int64), CLASSES, neighbours=3)
    with pytest.raises(ConfigError, match="fewer clips than neighbours"):
        bank.scores(taught)


def test_eight_bits_are_half_a_step_away_at_most_and_stay_where_they_are() -> None:
    rows, _ = clips(40, seed=6)
    rows[7] = 0.0
    small = Int8Rows.of(rows)
    steps = np.abs(rows).max(axis=1, keepdims=True) / 127.0
    assert (np.abs(small.dequantised() - rows) <= 0.5 * steps + 1e-6).all()
    assert small.values.dtype == np.int8 and (small.values[7] == 0).all()
    np.testing.assert_array_equal(Int8Rows.of(small.dequantised()).values, small.values)
    # The cosine of two rounded vectors moves by little: an error of half a step in each of DIM places.
    other, _ = clips(40, seed=7)
    moved = similarities("cosine", Int8Rows.of(other).dequantised(), small.dequantised())
    kept = np.arange(40) != 7
    assert np.abs(moved - similarities("cosine", other, rows))[:, kept].max() < 0.01
