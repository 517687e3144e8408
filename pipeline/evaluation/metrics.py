"""What a probe's answers are worth: one name a metric, computed by scikit-learn where it has it.

=========================  ========  =============================================================================
name                       kind      meaning
=========================  ========  =============================================================================
``accuracy``               classes   share of rows that are right
``balanced_accuracy``      classes   mean over classes of the share of their rows that are right
``mcc``                    classes   Matthews correlation of several classes (Gorodkin, 2004): 1 right, 0 by chance
``r2``                     values    share of variance explained: 1 right, 0 the mean of the test rows, may be < 0
``mae``                    values    mean absolute error, in the unit of the target; less is better
``ccc``                    values    Lin's concordance (1989): correlation that also asks for equal mean and spread
``mean_average_precision`` tags      mean over classes of the average precision
``macro_auc``              tags      mean over classes of the area under the receiver operating characteristic
=========================  ========  =============================================================================

Kinds: *classes* take (rows,) of labels; *values* (rows,) of numbers; *tags* (rows, classes) of 0, 1 or NaN (not
labelled) and scores of the same shape. A tag without a positive or without a negative row has no score and is left
out of the mean. Rows may be weighted, which is what the bootstrap does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped
from sklearn import metrics as sklearn_metrics

from pipeline.errors import ConfigError, OssicleError, near_matches

Kind = Literal["classes", "values", "tags"]
Rows = Shaped[np.ndarray, "rows ..."]
Weights = Float[np.ndarray, " rows"]


@dataclass(frozen=True)
class Metric:
    """A metric: its name in recipes and results, its name in print, what it takes, and which way is up."""

    name: str
    title: str
    kind: Kind
    compute: Callable[[np.ndarray, np.ndarray, np.ndarray | None], float]
    higher_is_better: bool = True


def find(name: str) -> Metric:
    """Return the metric called ``name``.

    Raises:
        ConfigError: there is none; near matches are listed.
    """
    if name not in METRICS:
        raise ConfigError(
            f"no metric is called {name!r}", expected=near_matches(name, list(METRICS)), got=name
        )
    return METRICS[name]


def score(name: str, truth: Rows, prediction: Rows, weights: Weights | None = None) -> float:
    """Return the metric ``name`` of ``prediction``.

    Args:
        name: a key of :data:`METRICS`.
        truth: (rows,) labels or numbers, or (rows, classes) of 0, 1 and NaN.
        prediction: of the same shape: labels, numbers, or scores (the higher, the likelier).
        weights: of the rows; default 1 each.

    Raises:
        ConfigError: no such metric.
        OssicleError: the shapes differ, a number is not finite, or the truth holds nothing to tell apart.
    """
    metric = find(name)
    if truth.shape != prediction.shape or truth.ndim != (2 if metric.kind == "tags" else 1) or not len(truth):
        raise OssicleError(
            f"{metric.title} needs truth and prediction of one shape",
            expected="(rows, classes) both" if metric.kind == "tags" else "(rows,) both",
            got=f"{truth.shape} and {prediction.shape}",
        )
    if metric.kind != "classes" and not np.isfinite(prediction.astype(np.float64)).all():
        raise OssicleError(f"{metric.title}: a prediction is not finite")
    if metric.kind == "values" and not np.isfinite(truth.astype(np.float64)).all():
        raise OssicleError(f"{metric.title}: a true value is not finite; leave unlabelled rows out")
    if name in ("mcc", "r2", "ccc") and len(np.unique(truth)) < 2:
        raise OssicleError(
            f"{metric.title} is undefined: all true values are equal", expected="two or more", got=truth[0]
        )
    return float(metric.compute(truth, prediction, weights))


def scorable_tags(truth: Float[np.ndarray, "rows classes"]) -> np.ndarray:
    """Return which tags have a positive and a negative row, as (classes,) of bool."""
    found: np.ndarray = (truth == 1).any(axis=0) & (truth == 0).any(axis=0)
    return found


def concordance(
    truth: Float[np.ndarray, " rows"], prediction: Float[np.ndarray, " rows"], weights: Weights | None = None
) -> float:
    """Return Lin's concordance correlation coefficient (Biometrics, 1989), with moments over the rows, not n - 1."""
    x, y = truth.astype(np.float64), prediction.astype(np.float64)
    mean_x, mean_y = np.average(x, weights=weights), np.average(y, weights=weights)
    covariance = np.average((x - mean_x) * (y - mean_y), weights=weights)
    spread = np.average((x - mean_x) ** 2 + (y - mean_y) ** 2, weights=weights)
    return float(2 * covariance / (spread + (mean_x - mean_y) ** 2))


def _balanced_accuracy(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray | None) -> float:
    # scikit-learn's own warns of predicted classes that the truth lacks; a mean of recalls knows no such thing.
    classes = np.unique(truth)
    recalls = sklearn_metrics.recall_score(
        truth, prediction, labels=classes, average=None, sample_weight=weights, zero_division=np.nan
    )
    return float(np.nanmean(recalls))


def _over_tags(
    compute: Callable[..., float], truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray | None
) -> float:
    tags = np.flatnonzero(scorable_tags(truth))
    if not len(tags):
        raise OssicleError("no tag has a positive and a negative row", got=f"{truth.shape[1]} tags")
    values = []
    for tag in tags:
        known = ~np.isnan(truth[:, tag])
        weight = None if weights is None else weights[known]
        values.append(compute(truth[known, tag], prediction[known, tag], sample_weight=weight))
    return float(np.mean(values))


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "accuracy", "accuracy", "classes",
            lambda t, p, w: sklearn_metrics.accuracy_score(t, p, sample_weight=w),
        ),
        Metric("balanced_accuracy", "balanced accuracy", "classes", _balanced_accuracy),
        Metric(
            "mcc", "Matthews correlation", "classes",
            lambda t, p, w: sklearn_metrics.matthews_corrcoef(t, p, sample_weight=w),
        ),
        Metric("r2", "R²", "values", lambda t, p, w: sklearn_metrics.r2_score(t, p, sample_weight=w)),
        Metric(
            "mae", "mean absolute error", "values",
            lambda t, p, w: sklearn_metrics.mean_absolute_error(t, p, sample_weight=w), higher_is_better=False,
        ),
        Metric("ccc", "concordance", "values", concordance),
        Metric(
            "mean_average_precision", "mean average precision", "tags",
            lambda t, p, w: _over_tags(sklearn_metrics.average_precision_score, t, p, w),
        ),
        Metric(
            "macro_auc", "macro ROC AUC", "tags",
            lambda t, p, w: _over_tags(sklearn_metrics.roc_auc_score, t, p, w),
        ),
    )
}  # fmt: skip
