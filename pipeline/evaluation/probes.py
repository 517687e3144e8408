"""Probes on frozen embeddings: k-nearest neighbours and logistic regression, fold by fold."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pipeline.errors import OssicleError

KNN, LINEAR = "knn", "linear"
PROBES = (KNN, LINEAR)
_MAX_ITERATIONS = 2_000


@dataclass(frozen=True)
class ProbeSettings:
    """``neighbours`` of k-NN (cosine, no scaling); ``logistic_c`` of logistic regression on standardised features."""

    neighbours: int = 5
    logistic_c: float = 0.1


@dataclass(frozen=True, eq=False)
class ProbeAnswers:
    """What a probe said of every clip, each fold by a probe fitted on all others.

    Attributes:
        predicted: labels.
        probabilities: (clips, classes): the neighbours' votes, or softmax; 0 for a class that the training folds
            lack.
        classes: labels of the columns, in alphabetical order.
    """

    predicted: Shaped[np.ndarray, " clips"]
    probabilities: Float[np.ndarray, "clips classes"]
    classes: Shaped[np.ndarray, " classes"]


def predict(
    probe: str,
    embedding: Float[np.ndarray, "clips dim"],
    labels: np.ndarray,
    folds: Int[np.ndarray, " clips"],
    settings: ProbeSettings,
) -> np.ndarray:
    """Return the predicted label of every clip: each fold by a probe fitted on all other folds.

    Args:
        probe: ``knn`` or ``linear``.
        embedding: frozen clip vectors.
        labels: (clips,) true labels.
        folds: fold of each clip.
        settings: of the probes.

    Raises:
        OssicleError: an embedding is not finite, or there are fewer training clips than neighbours.
    """
    return out_of_fold(probe, embedding, labels, folds, settings).predicted


def out_of_fold(
    probe: str,
    embedding: Float[np.ndarray, "clips dim"],
    labels: np.ndarray,
    folds: Int[np.ndarray, " clips"],
    settings: ProbeSettings,
) -> ProbeAnswers:
    """Return labels and probabilities for every clip, each fold by a probe fitted on all other folds.

    Arguments and errors are those of :func:`predict`.
    """
    if not np.isfinite(embedding).all():
        bad = int((~np.isfinite(embedding).all(axis=1)).sum())
        raise OssicleError("embeddings hold NaN or infinity", got=f"{bad} of {len(embedding)} clips")
    features = np.asarray(embedding, dtype=np.float64)
    classes = np.unique(labels)
    predicted = np.empty(len(labels), dtype=labels.dtype)
    probabilities = np.zeros((len(labels), len(classes)), dtype=np.float32)
    # Beside other busy processes, BLAS threads made logistic regression a hundred times slower (190 s for 2).
    with threadpool_limits(limits=1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        for fold in np.unique(folds):
            held_out = folds == fold
            train = ~held_out
            if probe == KNN and train.sum() < settings.neighbours:
                raise OssicleError(
                    "fewer training clips than neighbours", expected=settings.neighbours, got=int(train.sum())
                )
            model = probe_model(probe, settings)
            try:
                model.fit(features[train], labels[train])
            except ConvergenceWarning as warning:
                raise OssicleError(
                    "logistic regression did not converge", got=str(warning).splitlines()[0],
                    run="--set evaluate.logistic_c=0.01",
                ) from warning  # fmt: skip
            shares = model.predict_proba(features[held_out])
            columns = np.searchsorted(classes, model.classes_)
            probabilities[np.ix_(np.flatnonzero(held_out), columns)] = shares
            predicted[held_out] = model.classes_[shares.argmax(axis=1)]
    return ProbeAnswers(predicted, probabilities, classes)


def score(
    correct: Bool[np.ndarray, " clips"], labels: np.ndarray, folds: np.ndarray, metric: str
) -> list[float]:
    """Return the score of each fold, in ascending order of fold, from 0 to 1.

    ``accuracy`` is the share of clips that are right; ``balanced_accuracy`` the mean of that share over the
    classes that the fold holds.
    """
    scores = []
    for fold in np.unique(folds):
        inside = folds == fold
        if metric == "accuracy":
            scores.append(float(correct[inside].mean()))
            continue
        recalls = [correct[inside & (labels == label)].mean() for label in np.unique(labels[inside])]
        scores.append(float(np.mean(recalls)))
    return scores


def probe_model(probe: str, settings: ProbeSettings) -> KNeighborsClassifier | LogisticRegression:
    """Return a fresh probe, ``knn`` or ``linear``, with scikit-learn's ``fit`` and ``predict``."""
    if probe == KNN:
        return KNeighborsClassifier(n_neighbors=settings.neighbours, metric="cosine", algorithm="brute")
    regression = LogisticRegression(C=settings.logistic_c, max_iter=_MAX_ITERATIONS)
    return make_pipeline(StandardScaler(), regression)
