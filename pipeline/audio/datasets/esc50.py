"""ESC-50: 2,000 environmental sounds of 5 s, 50 classes, 5 folds. Piczak, ACM Multimedia 2015.

Read: ``meta/esc50.csv`` (``filename, fold, target, category, esc10, src_file, take``), ``audio/``. The folds keep
clips of one Freesound recording (``src_file``) together. Licences, from the dataset's page: CC BY-NC 3.0; the
clips marked ``esc10`` CC BY 3.0.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.audio.datasets.published import PublishedDataset, fold_number
from pipeline.audio.entries import Entry
from pipeline.audio.tables import csv_rows
from pipeline.input_config import DatasetInput

CITATION = "K. J. Piczak, ESC: Dataset for Environmental Sound Classification, ACM Multimedia 2015"
_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")


def described() -> PublishedDataset:
    """Return the dataset."""
    return PublishedDataset("esc50", "effects", "category", "CC-BY-NC-3.0", CITATION, entries)


def entries(source: DatasetInput) -> Iterator[Entry]:
    """Yield its clips; ``subset = "esc10"`` yields those marked so."""
    path = source.root / "meta" / "esc50.csv"
    for row in csv_rows(path, _COLUMNS, run="root = the folder ESC-50-master that its archive unpacks to"):
        is_esc10 = row["esc10"].lower() == "true"
        if source.subset == "esc10" and not is_esc10:
            continue
        yield Entry(
            f"audio/{row['filename']}", group=row["src_file"], fold=fold_number(row["fold"], str(path)),
            licence="CC-BY-3.0" if is_esc10 else "CC-BY-NC-3.0",
            columns=(("category", row["category"]), ("target", row["target"])),
        )  # fmt: skip
