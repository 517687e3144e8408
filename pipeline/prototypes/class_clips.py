"""Clips of the classes that a bank is taught: a folder with a folder a class, or a table with a label column."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from pipeline.audio.packages import SOUND_SUFFIXES
from pipeline.errors import ManifestError
from pipeline.evaluation import clips as task_clips
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.task import AudioSource, FoldPlan, Task

LICENCE = "the user's own"


def of_folder(folder: Path) -> TaskClips:
    """Return every sound below ``folder``, its class the first folder of its path, its recording the file itself.

    Raises:
        ManifestError: fewer than two folders hold sounds.
    """
    rows = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and path.suffix.lower() in SOUND_SUFFIXES and len(relative.parts) > 1:
            name = relative.as_posix()
            rows.append(
                {"clip_id": name, "path": str(path), "label": relative.parts[0], "group": name, "fold": 0}
            )
    if len({row["label"] for row in rows}) < 2:
        raise ManifestError(
            f"{folder} is no folder of classes", expected="two folders or more, each with the sounds of one class",
            got=f"{len(rows)} sounds in folders ({SOUND_SUFFIXES[0]}, ...)", run="--classes TABLE.csv --label COLUMN",
        )  # fmt: skip
    columns = ["clip_id", "path", "label", "group", "fold"]
    table = pd.DataFrame(rows, columns=columns).sort_values("clip_id", kind="stable").reset_index(drop=True)
    return TaskClips(_task(folder.resolve().name, AudioSource(source="manifest")), table, {})


def of_table(table: Path, label: str, group: str | None) -> TaskClips:
    """Return the clips of a CSV or Parquet table (``path`` and ``label`` columns); ``group`` names the recordings.

    Raises:
        MissingArtifactError: no such table.
        ManifestError: not readable, a column is missing, or fewer than two classes.
    """
    audio = AudioSource(source="csv", file=table.name, label_column=label, group_column=group)
    # No class is left out for having few clips here: episodes say what they need.
    plan = FoldPlan(kind="stratified_k_fold", count=2)
    found = task_clips.from_table(_task(table.stem, audio, plan), table)
    return replace(found, frame=found.frame.assign(fold=0))


def _task(name: str, audio: AudioSource, plan: FoldPlan | None = None) -> Task:
    safe = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in name) or "classes"
    folds = plan or FoldPlan(kind="stratified_k_fold")
    return Task(name=safe, title=name, licence=LICENCE, audio=audio, folds=folds)
