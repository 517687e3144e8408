"""Linear and k-NN probes of a task with a development and a test split; strengths chosen on development alone.

Features are standardised with the development rows' mean and deviation. *linear* is logistic regression for classes
and ridge regression for values; *knn* is the majority or the mean of the k nearest rows (Euclidean, standardised).
C, alpha or k is the one with the best metric over pooled out-of-fold answers on development, groups kept whole; ties
go to the smoother. The test rows are answered once, by a probe fitted on all of development. Where the dataset has a
validation split of its own, strengths are chosen on that one, and every probe is fitted on the train split alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pipeline.errors import OssicleError
from pipeline.evaluation import metrics
from pipeline.evaluation.probes import LINEAR, PROBES
from pipeline.evaluation.tag_probes import one_vs_rest, tag_vote
from pipeline.probe_config import ProbeGridConfig

_MAX_ITERATIONS = 2_000
Truth = Shaped[np.ndarray, "development ..."]
Answers = Shaped[np.ndarray, "strengths rows ..."]
# The answers to the test rows under one strength, and the probabilities of classes.
Final = Callable[[float], tuple[np.ndarray, np.ndarray | None]]
Solver = Callable[[np.ndarray, np.ndarray, np.ndarray, Sequence[float]], np.ndarray]


@dataclass(frozen=True)
class Answer:
    """What a probe said of the test rows, with which C, alpha or k, and how that one did on development.

    Attributes:
        prediction: (test,) labels or values, or (test, tags) scores.
        strength: C, alpha or k.
        development_score: the metric of its out-of-fold answers.
        at_edge: the grid's first or last, so that a wider grid may do better.
        probabilities: (test, classes) of tasks of classes: softmax, or the neighbours' shares; else None.
        classes: labels of their columns, in alphabetical order.
    """

    prediction: Shaped[np.ndarray, "test ..."]
    strength: float
    development_score: float
    at_edge: bool
    probabilities: Float[np.ndarray, "test classes"] | None = None
    classes: Shaped[np.ndarray, " classes"] | None = None


class SplitProbes:
    """The probes of one embedding on one set of rows; what several targets share is computed once.

    Args:
        embedding: (rows, dim) frozen.
        held_out: which rows are the test split.
        groups: (rows,) what cross-validation keeps whole.
        grid: strengths and folds.
        seed: of the folds.
        validation: which of the other rows are the dataset's own validation split; None = draw folds.

    Raises:
        OssicleError: an embedding is not finite, or development has fewer groups than folds.
    """

    def __init__(
        self,
        embedding: Float[np.ndarray, "rows dim"],
        held_out: Bool[np.ndarray, " rows"],
        groups: np.ndarray,
        grid: ProbeGridConfig,
        seed: int = 0,
        validation: Bool[np.ndarray, " rows"] | None = None,
    ) -> None:
        if not np.isfinite(embedding).all():
            bad = int((~np.isfinite(embedding).all(axis=1)).sum())
            raise OssicleError("embeddings hold NaN or infinity", got=f"{bad} of {len(embedding)} rows")
        fitted = ~held_out if validation is None else ~held_out & ~validation
        scaler = StandardScaler().fit(embedding[fitted].astype(np.float64))
        self.development: np.ndarray = scaler.transform(embedding[~held_out].astype(np.float64))
        self.test: np.ndarray = scaler.transform(embedding[held_out].astype(np.float64))
        self.grid = grid
        self.fitted: np.ndarray = np.flatnonzero(fitted[~held_out])
        if validation is None:
            self.folds = _drawn_folds(groups[~held_out], grid.folds, seed)
        else:
            self.folds = [(self.fitted, np.flatnonzero(validation[~held_out]))]
        self.scored: np.ndarray = np.sort(np.concatenate([rows for _, rows in self.folds]))

    def answer(self, probe: str, truth: Truth, metric: str) -> Answer:
        """Return the answers to the test rows.

        Args:
            probe: ``knn`` or ``linear``.
            truth: of the development rows: labels or values, as ``metric`` wants.
            metric: decides among the strengths.

        Raises:
            OssicleError: nothing to tell apart, or logistic regression does not converge.
        """
        if probe not in PROBES:
            raise OssicleError(f"no probe is called {probe!r}", expected=" or ".join(PROBES), got=probe)
        if len(np.unique(truth)) < 2:
            raise OssicleError("all development labels are equal", expected="two or more", got=truth[0])
        kind = metrics.find(metric).kind
        with threadpool_limits(limits=1, user_api="blas"):
            if probe == LINEAR:
                strengths, out_of_fold, test = self._linear(truth, kind)
            else:
                strengths, out_of_fold, test = self._nearest(truth, kind)
        sign = 1 if metrics.find(metric).higher_is_better else -1
        scores = [metrics.score(metric, truth[self.scored], answers[self.scored]) for answers in out_of_fold]
        # Strengths go from smooth to rough, and the first of equals wins.
        best = int(np.argmax(sign * np.array(scores)))
        at_edge = len(strengths) > 1 and best in (0, len(strengths) - 1)
        with threadpool_limits(limits=1, user_api="blas"):
            prediction, shares = test(strengths[best])
        classes = None if shares is None else np.unique(truth[self.fitted])
        return Answer(prediction, float(strengths[best]), scores[best], at_edge, shares, classes)

    def _linear(self, truth: Truth, kind: metrics.Kind) -> tuple[list[float], Answers, Final]:
        solver: Solver = {"classes": _logistic, "values": ridge, "tags": one_vs_rest}[kind]
        strengths = (
            sorted(self.grid.ridge_alpha, reverse=True) if kind == "values" else sorted(self.grid.logistic_c)
        )
        answers = np.zeros(
            (len(strengths), *truth.shape), dtype=truth.dtype if kind == "classes" else np.float64
        )
        for train, held_out in self.folds:
            answers[:, held_out] = solver(
                self.development[train], truth[train], self.development[held_out], strengths
            )
        rows, labels = self.development[self.fitted], truth[self.fitted]

        def final(chosen: float) -> tuple[np.ndarray, np.ndarray | None]:
            if kind != "classes":
                return solver(rows, labels, self.test, [chosen])[0], None
            (model,) = _regressions(rows, labels, [chosen])
            return model.predict(self.test), model.predict_proba(self.test)

        return strengths, answers, final

    def _nearest(self, truth: Truth, kind: metrics.Kind) -> tuple[list[float], Answers, Final]:
        fewest = min(len(train) for train, _ in self.folds)
        counts = sorted((k for k in set(self.grid.neighbours) if k <= fewest), reverse=True)
        if not counts:
            raise OssicleError(
                "fewer development rows than neighbours", expected=f">= {min(self.grid.neighbours)}", got=fewest,
                run="--set evaluate.grid.neighbours=[1]",
            )  # fmt: skip
        inside, outside = self._neighbours
        said = [float(k) for k in counts]
        return (
            said,
            vote(truth, inside, counts, kind),
            lambda chosen: (
                vote(truth, outside, [int(chosen)], kind)[0],
                _shares(truth, truth[self.fitted], outside[:, : int(chosen)]) if kind == "classes" else None,
            ),
        )

    @cached_property
    def _neighbours(self) -> tuple[Int[np.ndarray, "development k"], Int[np.ndarray, "test k"]]:
        """Return development rows nearest to each development row (in other folds) and to each test row."""
        fewest = min(len(train) for train, _ in self.folds)
        count = max((k for k in self.grid.neighbours if k <= fewest), default=1)
        inside = np.zeros((len(self.development), count), dtype=np.int64)
        for train, held_out in self.folds:
            inside[held_out] = train[_search(self.development[train], self.development[held_out], count)]
        return inside, self.fitted[_search(self.development[self.fitted], self.test, count)]


def _drawn_folds(groups: np.ndarray, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    if len(np.unique(groups)) < count:
        raise OssicleError(
            "development has fewer groups than cross-validation has folds", expected=f">= {count}",
            got=len(np.unique(groups)), run="--set evaluate.grid.folds=2",
        )  # fmt: skip
    return list(GroupKFold(count, shuffle=True, random_state=seed).split(groups, groups=groups))


def vote(
    truth: Truth, neighbours: Int[np.ndarray, "rows k"], counts: Sequence[int], kind: metrics.Kind
) -> Answers:
    """Return majority (of equals the first in alphabetical order), mean or share of the first ``counts`` neighbours."""
    if kind == "tags":
        return tag_vote(truth, neighbours, counts)
    if kind == "values":
        cumulative = np.cumsum(truth.astype(np.float64)[neighbours], axis=1)
        return np.stack([cumulative[:, k - 1] / k for k in counts])
    classes, numbers = np.unique(truth, return_inverse=True)
    votes = np.cumsum(np.eye(len(classes), dtype=np.int32)[numbers[neighbours]], axis=1)
    return np.stack([classes[votes[:, k - 1].argmax(axis=1)] for k in counts])


def ridge(
    train: Float[np.ndarray, "train dim"],
    truth: Float[np.ndarray, " train"],
    rows: Float[np.ndarray, "rows dim"],
    alphas: Sequence[float],
) -> Float[np.ndarray, "alphas rows"]:
    """Return ridge regression's answers for every alpha from one eigendecomposition (Hoerl and Kennard, 1970).

    The intercept is not penalised. Equal to fitting each alpha anew, at the price of one.
    """
    centre, mean = train.mean(axis=0), float(truth.mean())
    x, y = train - centre, truth - mean
    wide = x.shape[1] > x.shape[0]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    values = np.maximum(values, 0.0)
    left = (rows - centre) @ (x.T @ vectors if wide else vectors)
    right = vectors.T @ (y if wide else x.T @ y)
    return np.stack([left @ (right / (values + alpha)) + mean for alpha in alphas])


def _logistic(
    train: np.ndarray, truth: np.ndarray, rows: np.ndarray, strengths: Sequence[float]
) -> np.ndarray:
    """Return logistic regression's answers for every C, each started from the last."""
    return np.stack([model.predict(rows) for model in _regressions(train, truth, strengths)])


def _regressions(
    train: np.ndarray, truth: np.ndarray, strengths: Sequence[float]
) -> Iterator[LogisticRegression]:
    """Yield one model, fitted with every C in turn."""
    model = LogisticRegression(warm_start=True, max_iter=_MAX_ITERATIONS)
    if len(np.unique(truth)) < 2:
        raise OssicleError(
            "a fold's training rows are all of one class", got=truth[0], run="--set evaluate.grid.folds=2"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        for strength in strengths:
            model.set_params(C=strength)
            try:
                model.fit(train, truth)
            except ConvergenceWarning as warning:
                raise OssicleError(
                    f"logistic regression did not converge with C = {strength:g}",
                    got=str(warning).splitlines()[0], run="--set evaluate.grid.logistic_c=[0.0001,0.001,0.01]",
                ) from warning  # fmt: skip
            yield model


def _shares(
    truth: Truth, fitted: Truth, neighbours: Int[np.ndarray, "rows k"]
) -> Float[np.ndarray, "rows classes"]:
    """Return how many of each row's neighbours are of each class of the fitted rows, as a share."""
    classes = np.unique(fitted)
    numbers = np.searchsorted(classes, truth[neighbours])
    shares: np.ndarray = np.eye(len(classes))[numbers].mean(axis=1)
    return shares


def _search(rows: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    index = NearestNeighbors(n_neighbors=count, algorithm="brute", metric="euclidean")
    found: np.ndarray = index.fit(rows.astype(np.float32)).kneighbors(
        queries.astype(np.float32), return_distance=False
    )
    return found
