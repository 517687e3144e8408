"""Confidence intervals by resampling recordings (percentile bootstrap; Efron and Tibshirani, 1993)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

LEVEL = 0.95
WEIGHTS_AT_ONCE = 4_000_000


def interval(
    correct: Bool[np.ndarray, " clips"],
    labels: np.ndarray,
    groups: np.ndarray,
    folds: np.ndarray,
    *,
    metric: str,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Return the 95 % interval of the mean over folds, groups (recordings, kits) drawn with replacement.

    Clips of one recording stand or fall together, so it is recordings that are drawn, never clips. A fold
    that a draw leaves empty is left out of that draw's mean.

    Args:
        correct: whether each clip was classified rightly.
        labels, groups, folds: of each clip.
        metric: ``accuracy`` or ``balanced_accuracy``.
        resamples: number of draws; 0 gives (nan, nan).
        seed: of the draws.
    """
    if resamples == 0:
        return float("nan"), float("nan")
    means = draws(correct, labels, groups, folds, metric=metric, resamples=resamples, seed=seed)
    return bounds(means)


def bounds(drawn: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """Return the middle 95 % of the draws; NaN draws are left out, and of no others it is (nan, nan)."""
    if np.isnan(drawn).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def draws(
    correct: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    folds: np.ndarray,
    *,
    metric: str,
    resamples: int,
    seed: int,
) -> np.ndarray:
    """Return the mean over folds of each draw (resamples,); equal seeds draw equal groups.

    Args:
        correct: whether each clip was classified rightly.
        labels, groups, folds: of each clip.
        metric: ``accuracy`` or ``balanced_accuracy``.
        resamples: number of draws.
        seed: of the draws.
    """
    (means,) = draws_of_each([correct], labels, groups, folds, metric=metric, resamples=resamples, seed=seed)
    return means


def draws_of_each(
    answers: Sequence[np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray,
    folds: np.ndarray,
    *,
    metric: str,
    resamples: int,
    seed: int,
) -> list[np.ndarray]:
    """Return ``draws`` of each of ``answers``, drawing once for all of them."""
    _, group_of = np.unique(groups, return_inverse=True)
    cells = (
        folds if metric == "accuracy" else np.array([f"{f}\t{y}" for f, y in zip(folds, labels, strict=True)])
    )
    cell_names, cell_of = np.unique(cells, return_inverse=True)
    count = int(group_of.max()) + 1

    def table(values: np.ndarray | int) -> np.ndarray:
        counts = np.zeros((count, len(cell_names)))
        np.add.at(counts, (group_of, cell_of), values)
        return counts

    total, right = table(1), [table(correct) for correct in answers]
    fold_of_cell = np.array([str(name).split("\t")[0] for name in cell_names])
    cells_of_folds = [fold_of_cell == fold for fold in np.unique(fold_of_cell)]
    means: list[list[np.ndarray]] = [[] for _ in answers]
    generator, step = np.random.default_rng(seed), max(1, WEIGHTS_AT_ONCE // count)
    # In parts the generator gives the same draws, and thousands of recordings fit in memory.
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights = generator.multinomial(count, np.full(count, 1.0 / count), size=size).astype(np.float64)
        drawn = weights @ total
        for one, found in zip(right, means, strict=True):
            with np.errstate(invalid="ignore"):
                share = (weights @ one) / drawn
            per_fold = [_mean(share[:, chosen]) for chosen in cells_of_folds]
            found.append(_mean(np.stack(per_fold, axis=1)))
    return [np.concatenate(found) for found in means]


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row without its NaN; NaN for a row of nothing else."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
