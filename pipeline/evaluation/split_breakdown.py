"""What the answers of a split task say apart: by device or other condition, and class by class."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from jaxtyping import Shaped
from sklearn.metrics import confusion_matrix

from pipeline.evaluation import bootstrap, group_intervals, metrics
from pipeline.evaluation.split_task import SplitTask


def by_condition(
    task: SplitTask, prediction: Shaped[np.ndarray, "test ..."], *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Return a row a condition of the test split: score, 95 % interval by group, and whether training has heard it.

    After the conditions come their means, ``seen`` and ``unseen`` (DCASE's devices that train lacks), each condition
    counted once, where there is more than one of the kind. Empty for a task without conditions.

    Args:
        task: with ``conditions``.
        prediction: of its test rows.
        resamples: draws of groups; 0 for no intervals (NaN).
        seed: of the draws.
    """
    if task.conditions is None:
        return []
    inside = task.held_out
    trained = ~inside if task.validation is None else ~inside & ~task.validation
    heard = set(task.conditions[trained].tolist())
    conditions, truth, groups = task.conditions[inside], task.truth[inside], task.groups[inside]
    universe = np.unique(groups)
    rows, values = [], {}
    drawn: dict[str, np.ndarray] = {}
    for name in np.unique(conditions).tolist():
        of_it = conditions == name
        if metrics.find(task.metric).kind != "tags" and len(np.unique(truth[of_it])) < 2:
            continue
        values[name] = metrics.score(task.metric, truth[of_it], prediction[of_it])
        drawn[name] = np.array([np.nan])
        if resamples:
            with warnings.catch_warnings():
                # A draw of groups may hold none of a rare condition: it is undefined, and left out.
                warnings.filterwarnings("ignore", message="Mean of empty slice")
                drawn[name] = group_intervals.draws(
                    task.metric, truth[of_it], prediction[of_it], groups[of_it],
                    resamples=resamples, seed=seed, universe=universe,
                )  # fmt: skip
        rows.append(_row(name, int(of_it.sum()), values[name], drawn[name], name in heard))
    for kind, known in (("seen", True), ("unseen", False)):
        names = [name for name in values if (name in heard) == known]
        if len(names) > 1:
            value = float(np.mean([values[name] for name in names]))
            mean = np.mean([drawn[name] for name in names], axis=0)
            rows.append(_row(f"mean of {kind}", int(np.isin(conditions, names).sum()), value, mean, known))
    return rows


def confusion(task: SplitTask, prediction: Shaped[np.ndarray, " test"]) -> dict[str, Any]:
    """Return ``classes`` and ``counts``: how many test rows of each class (row) were called what (column).

    Empty for a task of values or tags.
    """
    if metrics.find(task.metric).kind != "classes":
        return {}
    counts = confusion_matrix(task.truth[task.held_out], prediction, labels=task.classes)
    return {"classes": task.classes, "counts": counts.tolist()}


def _row(name: str, rows: int, value: float, drawn: np.ndarray, seen: bool) -> dict[str, Any]:
    low, high = bootstrap.bounds(drawn)
    return {"condition": name, "rows": rows, "score": value, "low": low, "high": high, "seen": seen}
