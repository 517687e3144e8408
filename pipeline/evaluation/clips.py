"""The clips of a task: paths, labels, groups and folds, from a manifest or from a table of one's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import config
from pipeline.errors import ManifestError, MissingArtifactError, near_matches
from pipeline.evaluation.folds import NO_FOLD, assign_folds
from pipeline.evaluation.task import AudioSource, FoldPlan, Task
from pipeline.manifest import Manifest

UNLABELLED_CLIPS = 300
OWN_FOLDS = 5
OWN_CLIPS_AT_LEAST = 10
EXTRA_COLUMNS = ("absent", "condition")


@dataclass(frozen=True)
class TaskClips:
    """What a task is scored on.

    Attributes:
        task: the task.
        frame: one row a clip: ``clip_id``, ``path`` (absolute), ``label``, ``group``, ``fold``; sorted by ``clip_id``.
            Of a published dataset also ``absent`` (tags known not to be there) and ``condition``.
        left_out: clips of classes with fewer members than folds, by class.
    """

    task: Task
    frame: pd.DataFrame
    left_out: dict[str, int]

    @property
    def labelled(self) -> bool:
        """Whether there is anything to classify."""
        return bool((self.frame["fold"] != NO_FOLD).any())

    def digest(self) -> str:
        """Return the digest of clips, labels and folds (not of where the files lie)."""
        columns = [
            "clip_id",
            "label",
            "group",
            "fold",
            *(c for c in EXTRA_COLUMNS if c in self.frame.columns),
        ]
        rows = self.frame[columns].to_csv(index=False, lineterminator="\n")
        content: dict[str, Any] = {"task": self.task.name, "metric": self.task.metric, "rows": rows}
        if self.task.folds.kind == "split":
            content |= {"also": self.task.also, "folds": self.task.folds.model_dump(mode="json")}
        return config.digest(content)


def from_manifest(task: Task, manifest: Manifest) -> TaskClips | None:
    """Return the task's clips out of ``manifest``, or None where it holds fewer than two of its classes.

    Raises:
        ManifestError: the manifest lacks a column that the task names.
    """
    frame = manifest.frame
    if task.audio.dataset:
        frame = frame[frame["dataset"] == task.audio.dataset]
    _require_columns(frame, task.audio, "the manifest")
    frame = frame[frame[task.audio.label_column].astype(str) != ""]
    if frame[task.audio.label_column].nunique() < 2:
        return None
    paths = [manifest.roots[root] / path for root, path in zip(frame["root"], frame["path"], strict=True)]
    return _finished(task, frame.assign(path=[str(path) for path in paths]))


def from_csv(task: Task, root: Path) -> TaskClips:
    """Return the clips that the task's table under ``root`` lists.

    Raises:
        MissingArtifactError: the table is not there.
        ManifestError: it lacks a column, or a path leaves the root.
    """
    table = root / task.audio.file
    if not table.is_file():
        raise MissingArtifactError(
            f"task {task.name!r} has no table in its audio root", expected=str(table),
            run=f"--set evaluate.audio_roots.{task.name}=FOLDER",
        )  # fmt: skip
    return from_table(task, table, root)


def from_table(task: Task, table: Path, root: Path | None = None) -> TaskClips:
    """Return the clips of a CSV or Parquet table; paths are relative to ``root``, by default the table's folder.

    Raises:
        MissingArtifactError: no such table.
        ManifestError: not readable, a column is missing, a path leaves its root, or fewer than two classes.
    """
    frame = _read_table(table)
    _require_columns(frame, task.audio, str(table))
    if task.audio.path_column not in frame.columns:
        raise ManifestError(
            f"{table} has no column {task.audio.path_column!r}", expected="a column of paths", got=list(frame.columns)
        )  # fmt: skip
    frame = frame[frame[task.audio.label_column].fillna("").astype(str) != ""]
    if frame[task.audio.label_column].nunique() < 2:
        raise ManifestError(
            f"{table}: a task needs two classes or more",
            got=sorted(set(frame[task.audio.label_column].astype(str))), run="--label COLUMN",
        )  # fmt: skip
    relative = frame[task.audio.path_column].astype(str)
    folder = table.parent if root is None else root
    roots = _roots_beside(table)
    paths = []
    for row, path in enumerate(relative):
        base = roots.get(str(frame["root"].iloc[row]), folder) if "root" in frame.columns else folder
        if ".." in Path(path).parts:
            raise ManifestError("a path leaves its root", expected="a path below the root", got=path)
        paths.append(str(base / path))
    identity = frame["clip_id"].astype(str) if "clip_id" in frame.columns else relative
    return _finished(task, frame.assign(path=paths, clip_id=identity))


def table_task(table: Path, label: str, group: str | None) -> Task:
    """Return the task that a user's own table stands for: its folds, else groups, else stratified 5 folds."""
    columns = list(_read_table(table).columns)
    folds = FoldPlan(kind="stratified_k_fold")
    if group is not None:
        folds = FoldPlan(kind="grouped_k_fold")
    elif "fold" in columns:
        folds = FoldPlan(kind="column")
    audio = AudioSource(
        source="csv", file=table.name, label_column=label, group_column=group,
        fold_column="fold" if folds.kind == "column" else None,
    )  # fmt: skip
    return Task(name=table.stem, title=table.name, licence="the user's own", audio=audio, folds=folds)


def own_labels(manifest: Manifest) -> TaskClips | None:
    """Return the task that the manifest's own labels make (a user's folder: its first level), or None.

    Stratified folds of as many clips as the smallest usable class allows, five at most. A clip without a
    label is left out, and so is a class of one clip. Fewer than ten clips are no task.
    """
    labelled = manifest.frame[manifest.frame["label"].astype(str) != ""]
    sizes = labelled["label"].value_counts()
    sizes = sizes[sizes >= 2]
    if len(sizes) < 2 or sizes.sum() < OWN_CLIPS_AT_LEAST:
        return None
    folds = FoldPlan(kind="stratified_k_fold", count=int(max(2, min(OWN_FOLDS, sizes.min()))))
    task = Task(
        name="own_labels", title="The folder's own labels", licence="as in the manifest",
        audio=AudioSource(source="manifest"), folds=folds,
    )  # fmt: skip
    return from_manifest(task, manifest)


def unlabelled(manifest: Manifest, seed: int) -> TaskClips:
    """Return clips without classes, for structure and projection alone; drawn from validation where it is enough."""
    frame = manifest.frame
    held_out = frame[frame["split"] == "validation"]
    frame = held_out if len(held_out) >= UNLABELLED_CLIPS else frame
    chosen = np.sort(np.random.default_rng(seed).permutation(len(frame))[:UNLABELLED_CLIPS])
    frame = frame.iloc[chosen]
    paths = [manifest.roots[root] / path for root, path in zip(frame["root"], frame["path"], strict=True)]
    task = Task(
        name="unlabelled", title="Clips without labels", licence="as in the manifest",
        audio=AudioSource(source="manifest"), folds=FoldPlan(kind="stratified_k_fold"),
    )  # fmt: skip
    table = pd.DataFrame(
        {
            "clip_id": frame["clip_id"].astype(str), "path": [str(path) for path in paths],
            "label": frame["dataset"].astype(str), "group": frame["group"].astype(str), "fold": NO_FOLD,
        }
    )  # fmt: skip
    return TaskClips(task, table.sort_values("clip_id", kind="stable").reset_index(drop=True), {})


def _finished(task: Task, frame: pd.DataFrame) -> TaskClips:
    audio = task.audio
    group = frame[audio.group_column] if audio.group_column else frame["clip_id"]
    table = pd.DataFrame(
        {
            "clip_id": frame["clip_id"].astype(str), "path": frame["path"].astype(str),
            "label": frame[audio.label_column].astype(str), "group": group.astype(str),
        }
    )  # fmt: skip
    repeated = table["clip_id"][table["clip_id"].duplicated()]
    if len(repeated):
        raise ManifestError(f"task {task.name!r}: {len(repeated)} clips appear twice", got=repeated.iloc[0])
    if audio.fold_column is not None:
        table["given_fold"] = frame[audio.fold_column]
    table = table.sort_values("clip_id", kind="stable").reset_index(drop=True)
    table, left_out = assign_folds(table, task.folds, task.name)
    return TaskClips(task, table, left_out)


def _read_table(table: Path) -> pd.DataFrame:
    if not table.is_file():
        raise MissingArtifactError(f"no table of clips at {table}", expected="a CSV or Parquet file")
    try:
        if table.suffix == ".parquet":
            return pd.read_parquet(table)
        return pd.read_csv(table, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise ManifestError(
            f"{table} cannot be read as a table", expected="CSV or Parquet", got=str(error)
        ) from error


def _roots_beside(table: Path) -> dict[str, Path]:
    """Return the roots of a manifest artifact's ``roots.json``, where ``table`` lies in one."""
    roots = table.parent / "roots.json"
    if not roots.is_file():
        return {}
    return {name: Path(path) for name, path in json.loads(roots.read_text(encoding="utf-8")).items()}


def _require_columns(frame: pd.DataFrame, audio: AudioSource, where: str) -> None:
    for column in (audio.label_column, audio.group_column, audio.fold_column):
        if column is not None and column not in frame.columns:
            known = [str(name) for name in frame.columns]
            raise ManifestError(
                f"{where} has no column {column!r}", expected=near_matches(column, known), got=column
            )
