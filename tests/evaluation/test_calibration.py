"""Calibration, class tables, p-values and Holm's correction: by hand, by scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, confusion_matrix, precision_recall_fscore_support

from pipeline.errors import OssicleError
from pipeline.evaluation import class_tables, significance
from pipeline.evaluation.calibration import calibration, equal_mass_edges


def drawn(clips: int = 200, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    probabilities = generator.dirichlet(np.full(classes, 0.6), size=clips)
    truth = np.array([generator.choice(classes, p=row) for row in probabilities])
    return probabilities, truth


def test_calibration_error_is_the_sum_over_equal_bins() -> None:
    probabilities, truth = drawn()
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    order = np.argsort(confidence)
    want = 0.0
    for part in np.array_split(order, 10):
        want += len(part) / 200 * abs(right[part].mean() - confidence[part].mean())
    found = calibration(probabilities, truth, 10)
    assert found.expected_calibration_error == pytest.approx(want)
    assert found.clips == [20] * 10
    assert found.confidence == sorted(found.confidence)
    assert found.accuracy[-1] == pytest.approx(right[order[-20:]].mean())


def test_brier_is_the_squared_distance_and_scikit_learns_for_two_classes() -> None:
    probabilities, truth = drawn()
    want = np.mean([((p - np.eye(4)[t]) ** 2).sum() for p, t in zip(probabilities, truth, strict=True)])
    assert calibration(probabilities, truth).brier == pytest.approx(want)
    two, of_two = drawn(classes=2)
    assert calibration(two, of_two).brier == pytest.approx(2 * brier_score_loss(of_two, two[:, 1]))


def test_votes_of_equal_confidence_stay_together_in_any_order() -> None:
    edges = equal_mass_edges(np.repeat([0.4, 0.6, 0.8], [7, 2, 3]), 4)
    assert edges == [0, 7, 9, 12]
    assert equal_mass_edges(np.ones(5), 3) == [0, 5]
    probabilities = np.repeat([[0.6, 0.4], [0.8, 0.2]], [6, 4], axis=0)
    truth = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0, 1])
    found = calibration(probabilities, truth, 5)
    assert found.expected_calibration_error == pytest.approx(0.6 * abs(0.5 - 0.6) + 0.4 * abs(0.75 - 0.8))
    turned = np.random.default_rng(0).permutation(10)
    assert calibration(probabilities[turned], truth[turned], 5) == found


def test_a_sure_and_wrong_probe() -> None:
    found = calibration(np.array([[1.0, 0.0]] * 3), np.array([1, 1, 1]))
    assert (found.expected_calibration_error, found.brier) == (1.0, 2.0)
    with pytest.raises(OssicleError, match="no probabilities"):
        calibration(np.array([[0.5, 0.6]]), np.array([0]))
    with pytest.raises(OssicleError, match="needs clips"):
        calibration(np.zeros((0, 2)), np.zeros(0, int))


def test_class_tables_are_scikit_learns() -> None:
    generator = np.random.default_rng(2)
    classes = np.array(["a", "b", "c"])
    truth = classes[generator.integers(0, 3, 60)]
    predicted = np.where(generator.random(60) < 0.6, truth, classes[generator.integers(0, 3, 60)])
    counts = class_tables.confusion(truth, predicted, classes)
    np.testing.assert_array_equal(counts, confusion_matrix(truth, predicted))
    table = class_tables.per_class(counts, classes, {"a": 0.25})
    precision, recall, f1, clips = precision_recall_fscore_support(truth, predicted)
    for place, row in enumerate(table):
        assert (row["clips"], row["label"]) == (clips[place], classes[place])
        assert row["precision"] == pytest.approx(precision[place])
        assert row["recall"] == pytest.approx(recall[place])
        assert row["f1"] == pytest.approx(f1[place])
    assert table[0]["neighbour_agreement"] == 0.25
    assert np.isnan(table[1]["neighbour_agreement"])
    never = class_tables.per_class(np.array([[2, 0], [1, 0]]), classes[:2], {})
    assert np.isnan(never[1]["precision"])
    assert never[1]["recall"] == 0.0


def test_conditions_apart_and_which_are_unseen() -> None:
    conditions = np.array(["phone"] * 4 + ["box"] * 2)
    folds = np.array([0, 0, 1, 1, 1, 1])
    correct = np.array([True, False, True, True, False, True])
    phone, box = reversed(
        class_tables.per_condition(
            correct, np.array(list("abababab"))[:6], np.arange(6), folds, conditions,
            metric="accuracy", resamples=50, seed=0,
        )
    )  # fmt: skip
    assert (phone["condition"], phone["rows"], phone["score"], phone["seen"]) == ("phone", 4, 0.75, True)
    assert (box["condition"], box["rows"], box["score"], box["seen"]) == ("box", 2, 0.5, False)
    assert 0.0 <= box["low"] <= box["score"] <= box["high"] <= 1.0


def test_p_value_counts_the_draws_on_each_side() -> None:
    assert significance.p_value(np.array([1.0, 2.0, 3.0, -1.0])) == pytest.approx(2 * 2 / 5)
    assert significance.p_value(np.ones(999)) == pytest.approx(2 / 1000)
    assert significance.p_value(np.zeros(10)) == 1.0
    assert np.isnan(significance.p_value(np.zeros(0)))
    draws = np.random.default_rng(1).normal(0.2, 0.1, 200_000)
    assert significance.p_value(draws) == pytest.approx(2 * norm.sf(2.0), rel=0.05)


def test_holm_step_by_step() -> None:
    # The smallest times 4, the next times 3 ...; never below an earlier one.
    given = [0.01, 0.04, 0.03, 0.005]
    assert significance.holm(given) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([0.5, 0.6]) == [1.0, 1.0]
    with_nothing = significance.holm([float("nan"), 0.02])
    assert np.isnan(with_nothing[0])
    assert with_nothing[1] == 0.02
    assert significance.holm([]) == []


def test_ratio_of_paired_draws() -> None:
    theirs = np.array([0.5, 0.8, 0.0, 1.0])
    low, high = significance.ratio_interval(theirs / 2, theirs)
    assert (low, high) == (0.5, 0.5)
    assert all(np.isnan(significance.ratio_interval(theirs, np.zeros(4))))
