"""UrbanSound8K: 8,732 excerpts of at most 4 s, 10 classes, 10 folds. Salamon, Jacoby and Bello, ACM Multimedia 2014.

Read: ``metadata/UrbanSound8K.csv`` (``slice_file_name, fsID, start, end, salience, fold, classID, class``) and
``audio/fold1..10/``. The folds keep slices of one Freesound recording (``fsID``) together: do not shuffle them.
Licence, from memory of its README: CC BY-NC 3.0.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.audio.datasets.published import PublishedDataset, fold_number
from pipeline.audio.entries import Entry
from pipeline.audio.tables import csv_rows
from pipeline.input_config import DatasetInput

CITATION = "J. Salamon et al., A Dataset and Taxonomy for Urban Sound Research, ACM Multimedia 2014"
_COLUMNS = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")


def described() -> PublishedDataset:
    """Return the dataset."""
    return PublishedDataset("urbansound8k", "effects", "class", "CC-BY-NC-3.0", CITATION, entries)


def entries(source: DatasetInput) -> Iterator[Entry]:
    """Yield its slices."""
    path = source.root / "metadata" / "UrbanSound8K.csv"
    for row in csv_rows(path, _COLUMNS):
        fold = fold_number(row["fold"], str(path))
        yield Entry(
            f"audio/fold{fold}/{row['slice_file_name']}", group=row["fsID"], fold=fold,
            credit=f"Freesound {row['fsID']}",
            columns=(("class", row["class"]), ("classID", row["classID"]), ("salience", row["salience"])),
        )  # fmt: skip
