"""Folds: taken from a column, or drawn so that no group is on both sides."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from pipeline.errors import ManifestError
from pipeline.evaluation.task import FoldPlan

NO_FOLD = -1


def assign_folds(frame: pd.DataFrame, plan: FoldPlan, name: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return ``frame`` with a ``fold`` column, and the clips left out by class.

    Drawn folds are balanced over the classes (and over the groups, kept whole). A class with fewer clips
    (grouped: fewer groups) than two cannot be both learnt and tested and is left out.

    Args:
        frame: rows with ``label``, ``group`` and, for a column plan, ``given_fold``; in canonical order.
        plan: of the task.
        name: of the task, for messages.

    Raises:
        ManifestError: a fold is no whole number, a group is in two folds, or there are too few groups or clips.
    """
    if plan.kind == "column":
        return _given_folds(frame, name), {}
    unit = "group" if plan.kind == "grouped_k_fold" else "clip_id"
    least = 2 if plan.kind == "grouped_k_fold" else plan.count
    sizes = frame.groupby("label")[unit].nunique()
    small = sorted(str(label) for label in sizes[sizes < least].index)
    left_out = {label: int((frame["label"] == label).sum()) for label in small}
    kept = frame[~frame["label"].isin(small)].reset_index(drop=True)
    units = int(kept[unit].nunique())
    if kept["label"].nunique() < 2 or units < plan.count:
        raise ManifestError(
            f"task {name!r} cannot be divided into {plan.count} folds",
            expected=f"two classes of {least} {unit}s or more, {plan.count} {unit}s in all",
            got=f"{kept['label'].nunique()} such classes, {units} {unit}s",
        )
    labels = kept["label"].to_numpy(dtype=str)
    fold = np.full(len(kept), NO_FOLD, dtype=np.int64)
    options = {"n_splits": plan.count, "shuffle": True, "random_state": plan.seed}
    drawer = StratifiedGroupKFold(**options) if plan.kind == "grouped_k_fold" else StratifiedKFold(**options)
    groups = kept["group"].to_numpy(dtype=str) if plan.kind == "grouped_k_fold" else None
    with warnings.catch_warnings():
        # A class in fewer groups than folds is missing from some folds; that is what grouping by kit means.
        warnings.filterwarnings("ignore", message="The least populated class")
        for number, (_, held_out) in enumerate(drawer.split(labels, labels, groups)):
            fold[held_out] = number
    return kept.assign(fold=fold), left_out


def _given_folds(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    given = pd.to_numeric(frame["given_fold"], errors="coerce")
    if given.isna().any() or (given % 1 != 0).any() or (given < 0).any():
        raise ManifestError(
            f"task {name!r}: a fold is no whole number >= 0", got=list(frame["given_fold"].unique()[:8])
        )
    table = frame.drop(columns="given_fold").assign(fold=given.astype("int64"))
    if table["fold"].nunique() < 2:
        raise ManifestError(f"task {name!r} needs two folds or more", got=sorted(table["fold"].unique()))
    spread = table.groupby("group")["fold"].nunique()
    if (spread > 1).any():
        raise ManifestError(
            f"task {name!r}: a group is in more than one fold", got=str(spread[spread > 1].index[0])
        )
    return table
