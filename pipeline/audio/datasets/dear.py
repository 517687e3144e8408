"""DEAR: 1,158 tracks of 30 s for hearables: environment, speech, SNR, DRR, RT60. ICASSP 2025, arXiv 2502.06664.

Read: ``DEAR_metadata.csv`` (``id, split, environmentClass, indoorOrOutdoor, stationaryOrTransientNoise, nTargets,
targetRT60, targetDRR, targetSNR_1..30, nTargetsActive_1..30``) and ``files/<id>.wav``. Cells may be empty: a track of
the noise task carries its one label alone. Splits: development and test. Licence: see Zenodo record 14646595.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.audio.datasets.published import PublishedDataset
from pipeline.audio.entries import Entry
from pipeline.audio.tables import csv_rows
from pipeline.input_config import DatasetInput, SplitUse

CITATION = "Deep Evaluation of Audio Representations (DEAR), ICASSP 2025, arXiv 2502.06664, Zenodo 14646595"
SPLITS: dict[str, SplitUse] = {"development": "draw", "test": "omit"}
SECONDS = 30
TRACK_COLUMNS = (
    "environmentClass", "indoorOrOutdoor", "stationaryOrTransientNoise", "nTargets", "targetRT60", "targetDRR",
)  # fmt: skip
COLUMNS = TRACK_COLUMNS + tuple(
    f"{name}_{second}" for name in ("targetSNR", "nTargetsActive") for second in range(1, SECONDS + 1)
)


def described() -> PublishedDataset:
    """Return the dataset."""
    licence = "unknown (see Zenodo 14646595)"
    return PublishedDataset("dear", "ambience", "environmentClass", licence, CITATION, entries, SPLITS)


def entries(source: DatasetInput) -> Iterator[Entry]:
    """Yield its tracks, with every column of the table as a label column."""
    for row in csv_rows(source.root / "DEAR_metadata.csv", ("id", "split", *COLUMNS)):
        columns = tuple((name, row[name]) for name in COLUMNS)
        yield Entry(f"files/{row['id']}.wav", group=row["id"], split=row["split"], columns=columns)
