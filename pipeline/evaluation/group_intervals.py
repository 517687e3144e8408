"""Intervals of any metric of a held-out split, whole groups (tracks, recordings) drawn with replacement.

Rows of one group stand or fall together: thirty seconds of one track are one sample of the world, not thirty.
:mod:`~pipeline.evaluation.bootstrap` does the same for means over folds. All metrics of *classes* and *values* are
functions of sums over rows, so a draw costs one product of a matrix; *tags* are ranked once and summed each draw.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped

from pipeline.errors import OssicleError
from pipeline.evaluation import metrics
from pipeline.evaluation.bootstrap import bounds

Rows = Shaped[np.ndarray, "rows ..."]


def interval(
    metric: str, truth: Rows, prediction: Rows, groups: np.ndarray, *, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the 95 % percentile interval of ``metric``; (nan, nan) for no resamples.

    Args:
        metric: a key of :data:`~pipeline.evaluation.metrics.METRICS`.
        truth, prediction: as :func:`pipeline.evaluation.metrics.score` takes them.
        groups: (rows,) what is drawn whole.
        resamples: number of draws.
        seed: of the draws.

    Raises:
        OssicleError: the rows differ in number.
    """
    if resamples == 0:
        return float("nan"), float("nan")
    return bounds(draws(metric, truth, prediction, groups, resamples=resamples, seed=seed))


def draws(
    metric: str,
    truth: Rows,
    prediction: Rows,
    groups: np.ndarray,
    *,
    resamples: int,
    seed: int,
    universe: np.ndarray | None = None,
) -> Float[np.ndarray, " resamples"]:
    """Return ``metric`` of each draw; NaN where a draw leaves it undefined. Equal seeds draw equal groups.

    Args:
        metric, truth, prediction, groups: as of :func:`interval`.
        resamples: number of draws.
        seed: of the draws.
        universe: the groups that are drawn from, where ``groups`` are some of them: tasks on parts of the same
            tracks then share their draws, and a mean over tasks has an interval. Default ``groups``.

    Raises:
        OssicleError: the rows differ in number, or a group is not of the universe.
    """
    if not len(truth) == len(prediction) == len(groups):
        raise OssicleError(
            "rows differ in number", expected=f"{len(truth)} of each",
            got=f"{len(prediction)} predictions, {len(groups)} groups",
        )  # fmt: skip
    names = np.unique(groups if universe is None else universe)
    group_of = np.minimum(np.searchsorted(names, groups), len(names) - 1)
    if (names[group_of] != groups).any():
        raise OssicleError(
            "a group is not among those that are drawn", got=groups[names[group_of] != groups][0]
        )
    count = len(names)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    weights = weights.astype(np.float64)
    kind = metrics.find(metric).kind
    if kind == "tags":
        return _tag_draws(metric, truth, prediction, group_of, weights)
    rows, of_sums = (_class_sums if kind == "classes" else _value_sums)(metric, truth, prediction)
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, group_of, rows)
    with np.errstate(invalid="ignore", divide="ignore"):
        return of_sums(weights @ sums)


def _class_sums(
    metric: str, truth: np.ndarray, prediction: np.ndarray
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    classes, numbers = np.unique(np.concatenate([truth, prediction]), return_inverse=True)
    size = len(classes)
    cells = np.zeros((len(truth), size * size))
    cells[np.arange(len(truth)), numbers[: len(truth)] * size + numbers[len(truth) :]] = 1

    def of_sums(sums: np.ndarray) -> np.ndarray:
        table = sums.reshape(-1, size, size)
        total, right = table.sum(axis=(1, 2)), np.trace(table, axis1=1, axis2=2)
        true, said = table.sum(axis=2), table.sum(axis=1)
        if metric == "accuracy":
            return np.asarray(right / total)
        if metric == "balanced_accuracy":
            return np.asarray(np.nanmean(np.diagonal(table, axis1=1, axis2=2) / true, axis=1))
        above = right * total - (true * said).sum(axis=1)
        below = (total**2 - (said**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1))
        return np.where(below > 0, above / np.sqrt(below), 0.0)

    return cells, of_sums


def _value_sums(
    metric: str, truth: np.ndarray, prediction: np.ndarray
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    centre = float(np.mean(truth))
    x, y = truth.astype(np.float64) - centre, prediction.astype(np.float64) - centre
    rows = np.stack([np.ones(len(x)), np.abs(x - y), (x - y) ** 2, x, y, x * x, y * y, x * y], axis=1)

    def of_sums(sums: np.ndarray) -> np.ndarray:
        count, absolute, squared, *moments = sums.T
        if metric == "mae":
            return np.asarray(absolute / count)
        mean_x, mean_y, xx, yy, xy = (moment / count for moment in moments)
        variance = xx - mean_x**2
        # What is left of a constant target after rounding is no variance.
        variance = np.where(variance > 1e-12 * np.maximum(1.0, xx), variance, np.nan)
        if metric == "r2":
            return np.asarray(1 - squared / count / variance)
        covariance = xy - mean_x * mean_y
        return np.asarray(2 * covariance / (variance + yy - mean_y**2 + (mean_x - mean_y) ** 2))

    return rows, of_sums


def _tag_draws(
    metric: str, truth: np.ndarray, prediction: np.ndarray, group_of: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return the mean over tags of each draw; a tag that a draw leaves without positives or negatives is left out."""
    total, tags = np.zeros(len(weights)), np.zeros(len(weights))
    for tag in np.flatnonzero(metrics.scorable_tags(truth)):
        known = np.flatnonzero(~np.isnan(truth[:, tag]))
        order = known[np.argsort(-prediction[known, tag], kind="stable")]
        scores, positive = prediction[order, tag], truth[order, tag] == 1
        ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))
        for draw, weight in enumerate(weights):
            row = weight[group_of[order]]
            hits, all_rows = np.cumsum(row * positive)[ends], np.cumsum(row)[ends]
            misses = all_rows - hits
            if hits[-1] == 0 or misses[-1] == 0:
                continue
            tags[draw] += 1
            if metric == "macro_auc":
                total[draw] += np.trapezoid(np.append(0, hits), np.append(0, misses)) / (
                    hits[-1] * misses[-1]
                )
            else:
                precision = hits / np.maximum(all_rows, 1)
                total[draw] += (np.diff(hits, prepend=0) * precision).sum() / hits[-1]
    with np.errstate(invalid="ignore"):
        return total / tags
