"""Probes of a development and a test split, against scikit-learn fitted once a candidate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import matthews_corrcoef, r2_score
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from pipeline.errors import OssicleError
from pipeline.evaluation import split_answers
from pipeline.evaluation.split_answers import SplitAnswers
from pipeline.evaluation.split_probes import Answer, SplitProbes, ridge, vote
from pipeline.evaluation.split_task import SplitTask
from pipeline.probe_config import ProbeGridConfig

GENERATOR = np.random.default_rng(11)
ROWS, DIM = 90, 6
FEATURES = GENERATOR.normal(3.0, [1, 1, 5, 1, 1, 20], (ROWS, DIM)).astype(np.float32)
VALUES = FEATURES[:, 0] - 0.3 * FEATURES[:, 2] + GENERATOR.normal(0, 1.0, ROWS)
LABELS = np.where(np.median(VALUES) < VALUES, "high", np.where(FEATURES[:, 1] > 3, "low", "middle"))
GROUP = np.array([f"t{row // 3:02}" for row in range(ROWS)])
HELD_OUT = np.arange(ROWS) >= 60
GRID = ProbeGridConfig(
    logistic_c=(0.001, 0.1, 1.0), ridge_alpha=(1.0, 30.0, 1000.0), neighbours=(1, 5, 9), folds=3
)


def made(probe: str, kind: str, strength: float) -> object:
    if probe == "linear":
        return LogisticRegression(C=strength, max_iter=2_000) if kind == "mcc" else Ridge(alpha=strength)
    known = KNeighborsClassifier if kind == "mcc" else KNeighborsRegressor
    return known(n_neighbors=int(strength), algorithm="brute")


@pytest.mark.parametrize("probe", ["linear", "knn"])
@pytest.mark.parametrize("metric", ["mcc", "r2"])
def test_strengths_and_answers_equal_scikit_learns(probe: str, metric: str) -> None:
    truth = LABELS if metric == "mcc" else VALUES
    answer = SplitProbes(FEATURES, HELD_OUT, GROUP, GRID, seed=4).answer(probe, truth[~HELD_OUT], metric)
    scaler = StandardScaler().fit(FEATURES[~HELD_OUT].astype(float))
    inside, outside = (
        scaler.transform(FEATURES[~HELD_OUT].astype(float)),
        scaler.transform(FEATURES[HELD_OUT]),
    )
    known = truth[~HELD_OUT]
    grids = {("linear", "mcc"): GRID.logistic_c, ("linear", "r2"): GRID.ridge_alpha}
    scores = {}
    for strength in grids.get((probe, metric), GRID.neighbours):
        answers = np.empty_like(known)
        for train, out in GroupKFold(3, shuffle=True, random_state=4).split(inside, groups=GROUP[~HELD_OUT]):
            answers[out] = made(probe, metric, strength).fit(inside[train], known[train]).predict(inside[out])  # type: ignore[attr-defined]
        scores[strength] = (matthews_corrcoef if metric == "mcc" else r2_score)(known, answers)
    best = max(scores, key=lambda strength: scores[strength])
    assert answer.strength == best
    assert answer.development_score == pytest.approx(scores[best], abs=1e-6)
    assert answer.at_edge == (sorted(scores).index(best) != 1)
    want = made(probe, metric, best).fit(inside, known).predict(outside)  # type: ignore[attr-defined]
    if metric == "mcc":
        assert answer.prediction.tolist() == want.tolist()
        shares = made(probe, metric, best).fit(inside, known).predict_proba(outside)  # type: ignore[attr-defined]
        np.testing.assert_allclose(answer.probabilities, shares, atol=1e-5)
        assert answer.classes is not None
        assert answer.classes.tolist() == ["high", "low", "middle"]
    else:
        np.testing.assert_allclose(answer.prediction, want, rtol=1e-5, atol=1e-6)


def test_the_test_split_decides_nothing() -> None:
    """It is no validation split: whatever its rows are, the same strength is chosen with the same score."""
    other = FEATURES.copy()
    other[HELD_OUT] = GENERATOR.normal(0, 100, (30, DIM))
    for probe in ("linear", "knn"):
        first, second = (
            SplitProbes(x, HELD_OUT, GROUP, GRID).answer(probe, VALUES[~HELD_OUT], "r2")
            for x in (FEATURES, other)
        )
        assert (first.strength, first.development_score) == (second.strength, second.development_score)
        assert not np.allclose(first.prediction, second.prediction)


def test_cross_validation_keeps_tracks_whole() -> None:
    """Seconds of a track are copies of each other: with tracks whole, a neighbour cannot be a copy."""
    tracks = GENERATOR.normal(size=(20, DIM)).repeat(3, axis=0)
    random = GENERATOR.normal(size=20).repeat(3)
    held_out = np.arange(60) >= 45
    grid = ProbeGridConfig(neighbours=(1,), folds=5)
    groups = np.arange(20).repeat(3).astype(str)
    whole = SplitProbes(tracks, held_out, groups, grid).answer("knn", random[~held_out], "r2")
    split = SplitProbes(tracks, held_out, np.arange(60).astype(str), grid).answer(
        "knn", random[~held_out], "r2"
    )
    assert whole.development_score < 0.2
    assert split.development_score > 0.9


@pytest.mark.parametrize("shape", [(40, 5), (10, 25)])
def test_ridge_is_scikit_learns(shape: tuple[int, int]) -> None:
    x, rows = GENERATOR.normal(2.0, 1.0, shape), GENERATOR.normal(2.0, 1.0, (7, shape[1]))
    y = GENERATOR.normal(10.0, 1.0, shape[0])
    alphas = [0.1, 10.0, 1e4]
    want = [Ridge(alpha=alpha).fit(x, y).predict(rows) for alpha in alphas]
    np.testing.assert_allclose(ridge(x, y, rows, alphas), want, rtol=1e-8)


def test_votes_of_equals_go_to_the_first_class() -> None:
    truth, neighbours = np.array(["b", "a", "c"]), np.array([[0, 1, 2], [2, 2, 1]])
    assert vote(truth, neighbours, [1, 2, 3], "classes").tolist() == [["b", "c"], ["a", "c"], ["a", "c"]]


def test_what_cannot_be_probed_is_refused() -> None:
    known = VALUES[~HELD_OUT]
    with pytest.raises(OssicleError, match="NaN or infinity"):
        SplitProbes(np.where(np.arange(DIM) == 2, np.nan, FEATURES), HELD_OUT, GROUP, GRID)
    with pytest.raises(OssicleError, match="fewer groups"):
        SplitProbes(FEATURES, HELD_OUT, np.where(HELD_OUT, "t", "d"), GRID)
    probes = SplitProbes(FEATURES, HELD_OUT, GROUP, ProbeGridConfig(neighbours=(500,)))
    with pytest.raises(OssicleError, match="fewer development rows"):
        probes.answer("knn", known, "r2")
    with pytest.raises(OssicleError, match="labels are equal"):
        probes.answer("linear", np.zeros(len(known)), "r2")
    with pytest.raises(OssicleError, match="no probe"):
        probes.answer("forest", known, "r2")


@pytest.mark.parametrize("probe", ["linear", "knn"])
def test_answers_are_fitted_once_and_by_content(
    probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_classes = SplitTask("c", "C", "", "mcc", "track", np.arange(ROWS), LABELS, GROUP, HELD_OUT)
    of_values = SplitTask("v", "V", "", "r2", "track", np.arange(ROWS), VALUES, GROUP, HELD_OUT)

    def answers(*tasks: SplitTask, features: np.ndarray = FEATURES, seed: int = 4) -> list[Answer]:
        made = SplitAnswers(features, of_classes, GRID, seed, tmp_path)
        return [made.answer(probe, task) for task in tasks]

    first = answers(of_classes, of_values)
    plain = SplitAnswers(FEATURES, of_classes, GRID, 4).answer(probe, of_classes)
    with monkeypatch.context() as patched:

        def refuse(*_: object) -> None:
            raise AssertionError("fitted again")

        patched.setattr(split_answers, "SplitProbes", refuse)
        again = answers(of_classes, of_values)
        for one, other in zip([*first, plain], [*again, again[0]], strict=True):
            for name in ("strength", "development_score", "at_edge"):
                assert getattr(one, name) == getattr(other, name)
            for name in ("prediction", "probabilities", "classes"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert again[1].probabilities is None
        for changed in ({"features": FEATURES + 1}, {"seed": 5}):
            with pytest.raises(AssertionError, match="fitted again"):
                answers(of_classes, **changed)
        with pytest.raises(AssertionError, match="fitted again"):
            answers(replace(of_classes, truth=np.roll(LABELS, 1)))
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    np.testing.assert_array_equal(answers(of_classes)[0].prediction, first[0].prediction)
