"""What a model package says of its model: read from artifacts, never typed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas

from pipeline.artifact import Artifact
from pipeline.audio.windows import frame_count
from pipeline.deploy.package.licences import is_non_commercial, parts
from pipeline.students.saved import SavedStudent

OK, REJECTED = "ok", "rejected"
UNSTATED = "not stated"


@dataclass(frozen=True)
class DatasetRows:
    """One dataset of the store: its licences, and how many windows of it were heard.

    ``rejected`` counts windows that could not be used (silent, undecodable).
    """

    name: str
    licences: tuple[str, ...]
    train: int
    validation: int
    rejected: int


@dataclass(frozen=True)
class Score:
    """One probe on one task: ``score`` and its 95 % interval as shares; ``teacher`` the teacher's score."""

    task: str
    title: str
    task_licence: str
    metric: str
    clips: int
    groups: int
    probe: str
    precision: str
    score: float
    low: float | None
    high: float | None
    teacher: float | None
    neighbour_overlap: float | None
    neighbours: int | None

    @property
    def retention(self) -> float | None:
        """Share of the teacher's score that is kept."""
        return self.score / self.teacher if self.teacher else None


@dataclass(frozen=True)
class Model:
    """One ONNX file of the package; ``precision`` as its metadata says, ``ship`` for the one to use."""

    file: str
    precision: str
    file_bytes: int
    ship: bool


@dataclass(frozen=True)
class Facts:
    """Everything on the card.

    Attributes:
        name: of the package: label of the run, and the beginning of the export's digest.
        saved: the student, its frontend, its teacher's licence and credit.
        run: the training run's marker; None where its folder is gone.
        export: the export's marker.
        window_seconds: length of the windows it was trained on.
        datasets: rows of the store it was trained from.
        models: the ONNX files of the student.
        why_shipped: the reason for the file to ship.
        scores: of every evaluation that names this run or its files.
        costs: rows of benchmarks of these very files: ``file``, and the figures of ``benchmark.json``.
        labels: the classes of ``logits``, in order; None without a classifier.
        licence: hub identifier of the weights' licence, and the text it stands for.
        missing: one sentence for each figure that was not measured.
    """

    name: str
    saved: SavedStudent
    run: Artifact | None
    export: Artifact
    window_seconds: float
    datasets: tuple[DatasetRows, ...]
    models: tuple[Model, ...]
    why_shipped: str
    scores: tuple[Score, ...]
    costs: tuple[dict[str, Any], ...]
    labels: tuple[str, ...] | None
    licence: tuple[str, str]
    missing: tuple[str, ...] = field(default=())

    @property
    def window_samples(self) -> int:
        """Samples of a window at the frontend's rate."""
        return frame_count(self.window_seconds, self.saved.frontend.sample_rate_hz)

    @property
    def shipped(self) -> Model:
        """The file to ship."""
        return next(model for model in self.models if model.ship)

    @property
    def fp32(self) -> Model:
        """The float32 file."""
        return next(model for model in self.models if model.precision == "fp32")

    @property
    def non_commercial(self) -> tuple[str, ...]:
        """What forbids commercial use: the teacher, a checkpoint, datasets; empty where nothing says so."""
        found = []
        credits_ = [self.saved.teacher, self.saved.started_from]
        for what, credit in zip(("teacher", "starting checkpoint"), credits_, strict=True):
            if credit is not None and is_non_commercial(credit.licence):
                found.append(f"{what} ({credit.licence})")
        for dataset in self.datasets:
            forbidding = [licence for licence in dataset.licences if is_non_commercial(licence)]
            if forbidding:
                found.append(f"dataset {dataset.name} ({', '.join(forbidding)})")
        return tuple(found)


def datasets_of(clips: pandas.DataFrame) -> tuple[DatasetRows, ...]:
    """Return the datasets of a store's ``clips.parquet``, by name.

    A mixture of clips names its licences as ``A + B``; each is listed once. A store without the columns (one
    imported from elsewhere) is one dataset whose licence is not stated.
    """
    frame = clips.copy()
    for column, absent in (("dataset", UNSTATED), ("licence", UNSTATED), ("status", OK), ("split", "train")):
        if column not in frame:
            frame[column] = absent
        frame[column] = frame[column].fillna("").astype(str).replace("", absent)
    found = []
    for name, rows in frame.groupby("dataset", sort=True):
        usable = rows[rows["status"] == OK]
        licences = sorted({part for text in rows["licence"].unique() for part in parts(text)})
        found.append(
            DatasetRows(
                str(name), tuple(licences), int((usable["split"] == "train").sum()),
                int((usable["split"] == "validation").sum()), int((rows["status"] == REJECTED).sum()),
            )
        )  # fmt: skip
    return tuple(found)


def absent_figures(
    models: Sequence[Model], scores: Sequence[Score], costs: Sequence[dict[str, Any]]
) -> tuple[str, ...]:
    """Return one sentence for every figure that a reader would look for and that was not measured."""
    found = []
    scored = {score.precision for score in scores}
    if not scored:
        found.append("No evaluation names this run: how good its embeddings are was not measured.")
    elif not scored - {"fp32"}:
        found.append("The int8 file was not evaluated; the scores are of float32.")
    measured = {cost["file"] for cost in costs}
    unmeasured = [model.file for model in models if model.file not in measured]
    if unmeasured:
        found.append(f"No benchmark names {', '.join(unmeasured)}: cost was not measured.")
    found.append("Time on an ARM board, energy, and time on a hearing device's processor were not measured.")
    return tuple(found)
