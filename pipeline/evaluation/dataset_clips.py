"""Tasks on published datasets: clips, labels, folds and splits from the dataset's own metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import ValidationError

from pipeline.audio.datasets import published
from pipeline.audio.entries import LABEL_SEPARATOR, Confinement, Entry
from pipeline.errors import ConfigError, ManifestError, near_matches
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.folds import assign_folds
from pipeline.evaluation.split_task import SplitTask
from pipeline.evaluation.task import Task
from pipeline.input_config import DatasetInput

TEST, TRAIN, VALIDATION = 0, 1, 2
PRESENT = 0.5
OWN_GROUP, OWN_FOLD = "group", "fold"


def from_dataset(task: Task, root: Path) -> TaskClips:
    """Return the clips of a published dataset under ``root``; a split's clips have ``fold`` TEST, TRAIN or VALIDATION.

    Clips without a label, and those in no split that the task uses, are left out.

    Raises:
        ConfigError: the task names no known dataset, subset, column or split.
        ManifestError: the dataset's metadata are not there, or are not as published.
    """
    try:
        source = DatasetInput.model_validate(
            {
                "kind": task.audio.dataset,
                "root": root,
                "subset": task.audio.subset,
                "lists": None if task.audio.lists is None else root / task.audio.lists,
            }
        )
    except ValidationError as error:
        raise ConfigError(
            f"task {task.name!r} names no published dataset", expected="as manifest.inputs takes it",
            got=error.errors()[0]["msg"],
        ) from error  # fmt: skip
    listing = published.listing(source)
    inside = Confinement(root, follow_links=False, where=f"task {task.name}")
    entries = list(listing.entries)
    if not entries:
        raise ManifestError(
            f"task {task.name!r}: no clip was found", expected="an unpacked dataset", got=root
        )
    splits = {entry.split for entry in entries}
    wanted = _wanted_splits(task, splits)
    rows = []
    for number, entry in enumerate(entries, 1):
        if entry.reason or (wanted and entry.split not in wanted):
            continue
        label, absent = _label(task, entry)
        if label or absent:
            path = inside.relative(entry.path, number)
            rows.append(
                {
                    "clip_id": path, "path": str(root / path), "label": label, "absent": absent,
                    "group": _value(task, entry, task.audio.group_column) or path,
                    "condition": _value(task, entry, task.audio.condition_column),
                    "given_fold": wanted[entry.split] if wanted else _fold(task, entry),
                }
            )  # fmt: skip
    if not rows:
        raise ManifestError(
            f"task {task.name!r}: not one clip has a label", got=f"{len(entries)} clips in {root}"
        )
    frame = pd.DataFrame(rows).sort_values("clip_id", kind="stable").reset_index(drop=True)
    if task.audio.condition_column is None:
        frame = frame.drop(columns="condition")
    if not task.audio.tag_columns:
        frame = frame.drop(columns="absent")
    if wanted:
        return TaskClips(task, frame.rename(columns={"given_fold": "fold"}), {})
    if task.folds.kind != "column":
        frame = frame.drop(columns="given_fold")
    frame, left_out = assign_folds(frame, task.folds, task.name)
    return TaskClips(task, frame, left_out)


def split_tasks(clips: TaskClips) -> list[SplitTask]:
    """Return the task with each of its metrics, on its train, validation and test split.

    A group that the dataset itself has in several splits counts as one a split, and the task says how many are shared
    between train and test.

    Raises:
        ManifestError: a split has no clip or nothing to tell apart, or a value is no number.
    """
    task, frame = clips.task, clips.frame
    fold = frame["fold"].to_numpy()
    groups, shared = _apart(frame["group"].to_numpy(dtype=str), fold)
    about = task.about
    if shared:
        about = f"{about} {shared} groups are in both the train and the test split as published.".strip()
    truth, tags = _truth(task, frame)
    conditions = frame["condition"].to_numpy(dtype=str) if "condition" in frame.columns else None
    validation = fold == VALIDATION if task.folds.validation else None
    return [
        SplitTask(
            task.name if metric == task.metric else f"{task.name}_{metric}", task.title, about, metric, "track",
            np.arange(len(frame)), truth, groups, fold == TEST, validation=validation, tags=tags,
            conditions=conditions,
        )
        for metric in (task.metric, *task.also)
    ]  # fmt: skip


def _wanted_splits(task: Task, known: set[str]) -> dict[str, int]:
    if task.folds.kind != "split":
        return {}
    wanted = {task.folds.train: TRAIN, task.folds.test: TEST}
    if task.folds.validation:
        wanted[task.folds.validation] = VALIDATION
    for name in wanted:
        if name not in known:
            raise ManifestError(
                f"task {task.name!r}: no clip is in the split {name!r}", expected=near_matches(name, known - {""}),
                got=name, run="unpack every part of the dataset",
            )  # fmt: skip
    return wanted


def _label(task: Task, entry: Entry) -> tuple[str, str]:
    """Return the label, and the tags known to be absent."""
    audio = task.audio
    if audio.tag_columns:
        relevance = {tag: _value(task, entry, tag) for tag in audio.tag_columns}
        present = [tag for tag, text in relevance.items() if text and float(text) >= PRESENT]
        absent = [tag for tag, text in relevance.items() if text and float(text) < PRESENT]
        return LABEL_SEPARATOR.join(present), LABEL_SEPARATOR.join(absent)
    label = _value(task, entry, audio.label_column)
    if audio.tags:
        label = LABEL_SEPARATOR.join(tag for tag in label.split(LABEL_SEPARATOR) if tag in audio.tags)
    # Of several labels none is an answer too: such a clip is a negative of every tag.
    return label, "none" if task.kind == "tags" else ""


def _value(task: Task, entry: Entry, column: str | None) -> str:
    if column is None:
        return ""
    if column == OWN_GROUP:
        return entry.group
    columns = dict(entry.columns)
    if column not in columns:
        raise ConfigError(
            f"task {task.name!r}: {task.audio.dataset} has no column {column!r}",
            expected=near_matches(column, list(columns)), got=column,
        )  # fmt: skip
    return columns[column]


def _fold(task: Task, entry: Entry) -> int | str:
    column = task.audio.fold_column
    return entry.fold if column in (None, OWN_FOLD) else _value(task, entry, column)


def _apart(groups: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, int]:
    shared = np.intersect1d(groups[fold == TEST], groups[fold == TRAIN])
    elsewhere = np.isin(groups, groups[fold != TEST]) & (fold == TEST)
    names = np.array(
        [f"{name} (test)" if both else name for name, both in zip(groups, elsewhere, strict=True)]
    )
    return names, len(shared)


def _truth(task: Task, frame: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...]]:
    labels = frame["label"].to_numpy(dtype=str)
    if task.kind == "classes":
        return labels, ()
    if task.kind == "values":
        values = pd.to_numeric(frame["label"], errors="coerce").to_numpy(dtype=np.float64)
        if not np.isfinite(values).all():
            raise ManifestError(
                f"task {task.name!r}: a value is no number",
                got=labels[np.flatnonzero(~np.isfinite(values))[0]],
            )
        return values, ()
    present = [set(text.split(LABEL_SEPARATOR)) - {""} for text in labels]
    tags = task.audio.tag_columns or task.audio.tags or tuple(sorted(set().union(*present)))
    place = {tag: number for number, tag in enumerate(tags)}
    partly = bool(task.audio.tag_columns)
    truth = np.full((len(frame), len(tags)), np.nan if partly else 0.0)
    for row, found in enumerate(present):
        truth[row, [place[tag] for tag in found]] = 1.0
    if partly:
        for row, text in enumerate(frame["absent"].to_numpy(dtype=str)):
            truth[row, [place[tag] for tag in text.split(LABEL_SEPARATOR) if tag]] = 0.0
    return truth, tags
