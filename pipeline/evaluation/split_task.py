"""A task with one development and one test part, of which a row may be a whole track or one second of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, Shaped

from pipeline.errors import ManifestError, NothingToTellApartError
from pipeline.evaluation import metrics

Unit = Literal["track", "second"]


@dataclass(frozen=True)
class SplitTask:
    """What is asked of embeddings of tracks, or of seconds.

    Attributes:
        name: in scores and file names.
        title: in print.
        about: one sentence on label and rows.
        metric: a key of :data:`~pipeline.evaluation.metrics.METRICS`.
        unit: what one embedding is of.
        rows: (rows,) places in the matrix of the unit's embeddings: of tracks, or of all tracks' seconds.
        truth: (rows,) labels (text, whose ids are their alphabetical order) or values (float64), or (rows, tags) of 1,
            0 and NaN (not labelled).
        groups: (rows,) the track.
        held_out: (rows,) whether the row is of the test split.
        left_out: reason to the number of rows that are not scored.
        validation: (rows,) whether the row is of the dataset's own validation split; None = it has none, and
            strengths are chosen by cross-validation.
        tags: names of the columns of ``truth``, where it has columns.
        conditions: (rows,) device or other condition; None where the task has none.

    Raises:
        ManifestError: a track is in both splits, a split has no row, there is nothing to tell apart, or the test
            split has a class that development lacks.
    """

    name: str
    title: str
    about: str
    metric: str
    unit: Unit
    rows: Int[np.ndarray, " rows"]
    truth: Shaped[np.ndarray, "rows ..."]
    groups: np.ndarray
    held_out: Bool[np.ndarray, " rows"]
    left_out: dict[str, int] = field(default_factory=dict)
    validation: Bool[np.ndarray, " rows"] | None = None
    tags: tuple[str, ...] = ()
    conditions: np.ndarray | None = None

    def __post_init__(self) -> None:
        both = np.intersect1d(self.groups[self.held_out], self.groups[~self.held_out])
        if len(both):
            raise ManifestError(f"task {self.name!r}: a track is in both splits", got=str(both[0]))
        for split, inside in (("development", ~self.held_out), ("test", self.held_out)):
            if len(np.unique(self.truth[inside])) < 2:
                raise NothingToTellApartError(
                    f"task {self.name!r}: the {split} split has nothing to tell apart",
                    expected="two different labels or more", got=f"{int(inside.sum())} rows",
                )  # fmt: skip
        unknown = np.setdiff1d(self.truth[self.held_out], self.truth[~self.held_out])
        if metrics.find(self.metric).kind == "classes" and len(unknown):
            raise NothingToTellApartError(
                f"task {self.name!r}: the test split has a class that development lacks", got=str(unknown[0])
            )

    @property
    def classes(self) -> list[str]:
        """Labels in alphabetical order; none for values."""
        return sorted(set(self.truth.tolist())) if self.truth.dtype.kind == "U" else []

    def where(self, kept: Bool[np.ndarray, " rows"], reason: str) -> SplitTask:
        """Return the task without the rows that are not ``kept``, counted under ``reason``."""
        gone = int((~kept).sum())
        if not gone:
            return self
        return replace(
            self, rows=self.rows[kept], truth=self.truth[kept], groups=self.groups[kept],
            held_out=self.held_out[kept], left_out={**self.left_out, reason: gone},
            validation=None if self.validation is None else self.validation[kept],
            conditions=None if self.conditions is None else self.conditions[kept],
        )  # fmt: skip
