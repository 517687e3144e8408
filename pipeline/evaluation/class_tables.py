"""What out-of-fold answers say class by class and condition by condition: confusion, recall, precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from pipeline.evaluation import bootstrap, probes


def confusion(
    truth: np.ndarray, predicted: np.ndarray, classes: np.ndarray
) -> Int[np.ndarray, "classes classes"]:
    """Return how many clips of each class (row) were called what (column); ``classes`` in alphabetical order."""
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (np.searchsorted(classes, truth), np.searchsorted(classes, predicted)), 1)
    return counts


def per_class(
    counts: Int[np.ndarray, "classes classes"], classes: np.ndarray, agreement: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return a row a class: clips, recall, precision, F1, and the share of neighbours of the same class.

    Args:
        counts: of :func:`confusion`.
        classes: its labels.
        agreement: of :func:`~pipeline.evaluation.geometry.label_agreement`.

    A share of nothing (a class never answered, or without clips) is NaN.
    """
    rows = []
    for place, label in enumerate(classes):
        right, of_class, called = counts[place, place], counts[place].sum(), counts[:, place].sum()
        rows.append(
            {
                "label": str(label), "clips": int(of_class), "recall": _share(right, of_class),
                "precision": _share(right, called), "f1": _share(2 * right, of_class + called),
                "neighbour_agreement": agreement.get(str(label), float("nan")),
            }
        )  # fmt: skip
    return rows


def per_condition(
    correct: Bool[np.ndarray, " clips"],
    labels: np.ndarray,
    groups: np.ndarray,
    folds: np.ndarray,
    conditions: np.ndarray,
    *,
    metric: str,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return a row a condition (a recording device), its score with the 95 % interval over its recordings.

    ``seen`` is whether some probe that answered it was fitted on other clips of the same condition: not for one that
    a single held-out fold has (DCASE's unseen devices).
    """
    rows = []
    for condition in np.unique(conditions):
        inside = conditions == condition
        low, high = bootstrap.interval(
            correct[inside], labels[inside], groups[inside], folds[inside],
            metric=metric, resamples=resamples, seed=seed,
        )  # fmt: skip
        of_condition = folds[inside]
        value = float(np.mean(probes.score(correct[inside], labels[inside], folds[inside], metric)))
        rows.append(
            {
                "condition": str(condition), "rows": int(inside.sum()), "score": value, "low": low, "high": high,
                "seen": len(np.unique(of_condition)) > 1,
            }
        )  # fmt: skip
    return rows


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")
