"""What out-of-fold answers say class by class and device by device: confusion, recall, precision."""

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


def per_device(
    correct: Bool[np.ndarray, " clips"],
    labels: np.ndarray,
    groups: np.ndarray,
    folds: np.ndarray,
    devices: np.ndarray,
    *,
    metric: str,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return a row a device: clips, score with its 95 % interval over recordings, and whether it was ever trained on.

    ``seen`` is the share of its clips whose probe was fitted on other clips of the same device: 0 for a device that
    only the held-out fold has (DCASE's unseen devices).
    """
    rows = []
    for device in np.unique(devices):
        inside = devices == device
        low, high = bootstrap.interval(
            correct[inside], labels[inside], groups[inside], folds[inside],
            metric=metric, resamples=resamples, seed=seed,
        )  # fmt: skip
        of_device = folds[inside]
        seen = np.array([bool((of_device != fold).any()) for fold in of_device])
        value = float(np.mean(probes.score(correct[inside], labels[inside], folds[inside], metric)))
        rows.append(
            {
                "device": str(device), "clips": int(inside.sum()), "score": value, "low": low, "high": high,
                "seen": float(seen.mean()),
            }
        )  # fmt: skip
    return rows


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")
