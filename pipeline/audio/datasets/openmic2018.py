"""OpenMIC-2018: 20,000 music clips of 10 s, 20 instruments, partly observed. Humphrey, Durand and McFee, ISMIR 2018.

Read: ``openmic-2018-aggregated-labels.csv`` (``sample_key, instrument, relevance, num_responses``),
``openmic-2018-metadata.csv`` (``sample_key``, ``artist_id``, ``artist_name``, ``license_title``, ...),
``partitions/split01_{train,test}.csv`` (a key a line) and ``audio/000/000046_3840.ogg``. An instrument without a
row was not looked for: its column is empty, which is neither yes nor no.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.audio.datasets.published import PublishedDataset
from pipeline.audio.entries import LABEL_SEPARATOR, Entry
from pipeline.audio.tables import csv_rows
from pipeline.errors import ManifestError
from pipeline.input_config import DatasetInput, SplitUse

CITATION = (
    "E. Humphrey et al., OpenMIC-2018: An Open Data-set for Multiple Instrument Recognition, ISMIR 2018"
)
SPLITS: dict[str, SplitUse] = {"train": "draw", "test": "omit"}
PRESENT = 0.5  # relevance from which its authors count an instrument as present


def described() -> PublishedDataset:
    """Return the dataset."""
    return PublishedDataset("openmic2018", "music", "instruments", "CC-BY-4.0", CITATION, entries, SPLITS)


def entries(source: DatasetInput) -> Iterator[Entry]:
    """Yield its clips: ``instruments`` are those found present, and one column an instrument holds its relevance."""
    table = source.root / "openmic-2018-aggregated-labels.csv"
    relevance: dict[str, dict[str, str]] = {}
    for row in csv_rows(table, ("sample_key", "instrument", "relevance")):
        try:
            float(row["relevance"])
        except ValueError as error:
            raise ManifestError(f"{table}: a relevance is no number", got=row["relevance"]) from error
        relevance.setdefault(row["sample_key"], {})[row["instrument"]] = row["relevance"]
    instruments = sorted({name for found in relevance.values() for name in found})
    splits = {key: name for name in ("train", "test") for key in _keys(source.root, name)}
    metadata = source.root / "openmic-2018-metadata.csv"
    for row in csv_rows(metadata, ("sample_key", "artist_id", "artist_name", "license_title")):
        key = row["sample_key"]
        found = relevance.get(key, {})
        present = [name for name in instruments if float(found.get(name, 0)) >= PRESENT]
        yield Entry(
            f"audio/{key[:3]}/{key}.ogg", group=f"artist {row['artist_id']}", split=splits.get(key, "unlisted"),
            licence=row["license_title"] or "unknown", credit=row["artist_name"] or "unknown",
            columns=(
                ("instruments", LABEL_SEPARATOR.join(present)),
                *((name, found.get(name, "")) for name in instruments),
            ),
        )  # fmt: skip


def _keys(root: Path, name: str) -> list[str]:
    path = root / "partitions" / f"split01_{name}.csv"
    if not path.is_file():
        raise ManifestError(f"{path} is not there", expected="a sample_key a line")
    return path.read_text(encoding="utf-8").split()
