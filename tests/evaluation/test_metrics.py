"""Metrics by name, and their intervals, against scikit-learn on rows weighted or written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from pipeline.errors import ConfigError, OssicleError
from pipeline.evaluation import bootstrap, group_intervals, metrics

GENERATOR = np.random.default_rng(7)
ROWS, GROUPS = 60, 12
GROUP = np.repeat(np.array([f"track{n:02}" for n in range(GROUPS)]), ROWS // GROUPS)
CLASSES = GENERATOR.choice(["a", "b", "c"], ROWS)
SAID = np.where(GENERATOR.random(ROWS) < 0.6, CLASSES, "b")
VALUES = GENERATOR.normal(50.0, 3.0, ROWS)
GUESSED = VALUES + GENERATOR.normal(0.5, 2.0, ROWS)
TAGS = (GENERATOR.random((ROWS, 4)) < 0.4).astype(float)
TAGS[GENERATOR.random(TAGS.shape) < 0.2] = np.nan
TAGS[:, 3] = 0.0
SCORES = np.round(np.nan_to_num(TAGS, nan=0.5) + GENERATOR.normal(0, 0.8, TAGS.shape), 1)
GIVEN = {"classes": (CLASSES, SAID), "values": (VALUES, GUESSED), "tags": (TAGS, SCORES)}


def over_tags(function: object, weights: np.ndarray) -> float:
    found = []
    for tag in range(3):
        known = ~np.isnan(TAGS[:, tag])
        found.append(function(TAGS[known, tag], SCORES[known, tag], sample_weight=weights[known]))  # type: ignore[operator]
    return float(np.mean(found))


def reference(name: str, weights: np.ndarray) -> float:
    """Return the metric by scikit-learn, or by the definition, on whole-number weights."""
    if name == "mean_average_precision":
        return over_tags(sklearn_metrics.average_precision_score, weights)
    if name == "macro_auc":
        return over_tags(sklearn_metrics.roc_auc_score, weights)
    truth, said = (np.repeat(rows, weights) for rows in GIVEN[metrics.find(name).kind])
    if name == "ccc":
        r, spread, drawn = stats.pearsonr(truth, said)[0], np.std(truth), np.std(said)
        return float(2 * r * spread * drawn / (spread**2 + drawn**2 + (truth.mean() - said.mean()) ** 2))
    function = {
        "accuracy": sklearn_metrics.accuracy_score, "balanced_accuracy": sklearn_metrics.balanced_accuracy_score,
        "mcc": sklearn_metrics.matthews_corrcoef, "r2": sklearn_metrics.r2_score,
        "mae": sklearn_metrics.mean_absolute_error,
    }[name]  # fmt: skip
    return float(function(truth, said))


@pytest.mark.parametrize("name", metrics.METRICS)
def test_scores_and_draws_equal_the_reference(name: str) -> None:
    truth, said = GIVEN[metrics.find(name).kind]
    ones = np.ones(ROWS, dtype=int)
    assert metrics.score(name, truth, said) == pytest.approx(reference(name, ones))
    weights = np.random.default_rng(3).integers(0, 3, ROWS)
    assert metrics.score(name, truth, said, weights) == pytest.approx(reference(name, weights))
    drawn = group_intervals.draws(name, truth, said, GROUP, resamples=8, seed=5)
    counts = np.random.default_rng(5).multinomial(GROUPS, np.full(GROUPS, 1 / GROUPS), size=8)
    want = [reference(name, np.repeat(count, ROWS // GROUPS)) for count in counts]
    np.testing.assert_allclose(drawn, want, atol=1e-9)


def test_a_known_confusion() -> None:
    """Two of five equal classes read as one: (c s - t p) / sqrt((s2 - p2)(s2 - t2)) = 15 / sqrt(360)."""
    truth = np.repeat([*"abcde"], 4)
    assert metrics.score("mcc", truth, np.where(truth == "b", "c", truth)) == pytest.approx(15 / np.sqrt(360))
    assert metrics.score("mcc", truth, np.full(20, "a")) == 0


def test_a_tag_without_positives_or_with_unlabelled_rows_is_not_scored_as_negative() -> None:
    assert metrics.scorable_tags(TAGS).tolist() == [True, True, True, False]
    truth = np.array([[1.0], [0.0], [np.nan]])
    assert metrics.score("mean_average_precision", truth, np.array([[0.5], [0.1], [0.9]])) == 1.0


def test_it_is_tracks_that_are_drawn() -> None:
    """Thirty equal seconds of a track say no more than one."""
    options = {"resamples": 200, "seed": 1}
    truth, said, group = VALUES[:GROUPS], GUESSED[:GROUPS], np.unique(GROUP)
    one = group_intervals.interval("r2", truth, said, group, **options)
    many = group_intervals.interval("r2", *(np.repeat(x, 30) for x in (truth, said, group)), **options)
    assert many == pytest.approx(one)
    as_if_free = group_intervals.interval(
        "r2", np.repeat(truth, 30), np.repeat(said, 30), np.arange(30 * GROUPS), **options
    )
    assert as_if_free[1] - as_if_free[0] < 0.5 * (one[1] - one[0])


def test_a_draw_that_leaves_nothing_to_tell_apart_has_no_value() -> None:
    drawn = group_intervals.draws(
        "r2", np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.array(["a", "b"]), resamples=50, seed=0
    )
    assert np.isnan(drawn).any()
    assert (drawn[~np.isnan(drawn)] == 1).all()
    assert bootstrap.bounds(drawn) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "truth", "said", "problem"),
    [
        ("r3", VALUES, GUESSED, "no metric is called"),
        ("r2", VALUES, GUESSED[:-1], "one shape"),
        ("r2", np.ones(3), np.ones(3), "undefined"),
        ("mcc", np.array([*"aaa"]), np.array([*"aab"]), "undefined"),
        ("mae", np.array([1.0, np.nan]), np.ones(2), "unlabelled"),
        ("mae", np.ones(2), np.array([1.0, np.inf]), "not finite"),
        ("macro_auc", np.ones((3, 2)), np.ones((3, 2)), "no tag"),
    ],
)
def test_what_has_no_score_is_refused(name: str, truth: np.ndarray, said: np.ndarray, problem: str) -> None:
    with pytest.raises((OssicleError, ConfigError), match=problem):
        metrics.score(name, truth, said)
