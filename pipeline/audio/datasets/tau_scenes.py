"""TAU Urban Acoustic Scenes (DCASE task 1): 10 scenes, several cities and devices. Mesaros et al., DCASE 2018.

Read: ``meta.csv`` (tab; ``filename, scene_label, identifier, source_label``), ``evaluation_setup/fold1_train.csv``
and ``fold1_evaluate.csv`` (tab; ``filename, scene_label``), ``audio/``. DCASE 2024's reduced training lists
(``split5.csv`` ... ``split100.csv``, same columns) are given as ``lists``. The official evaluation part of the
development set becomes validation here; a clip in neither list is left out. Groups are places (``identifier``: city
and location), the device is the column ``source_label``. Licence: the dataset's own, for non-commercial use.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.audio.datasets.published import PublishedDataset
from pipeline.audio.entries import Entry
from pipeline.audio.tables import csv_rows
from pipeline.errors import ManifestError
from pipeline.input_config import DatasetInput, SplitUse

CITATION = "A. Mesaros et al., A Multi-device Dataset for Urban Acoustic Scene Classification, DCASE 2018"
SPLITS: dict[str, SplitUse] = {"train": "train", "evaluate": "validation", "unused": "omit"}
LICENCE = "TAU Urban Acoustic Scenes licence (non-commercial)"


def described() -> PublishedDataset:
    """Return the dataset."""
    return PublishedDataset("tau_scenes", "ambience", "scene_label", LICENCE, CITATION, entries, SPLITS)


def entries(source: DatasetInput) -> Iterator[Entry]:
    """Yield the clips of ``meta.csv``."""
    setup = source.root / "evaluation_setup"
    train = _names(source.lists or setup / "fold1_train.csv")
    evaluate = _names(setup / "fold1_evaluate.csv")
    if both := train & evaluate:
        raise ManifestError(f"{len(both)} clips are in both lists of {setup}", got=min(both))
    columns = ("filename", "scene_label", "identifier", "source_label")
    for row in csv_rows(source.root / "meta.csv", columns, delimiter="\t"):
        name = row["filename"]
        split = "train" if name in train else "evaluate" if name in evaluate else "unused"
        city = row["identifier"].partition("-")[0]
        labels = (("scene_label", row["scene_label"]), ("source_label", row["source_label"]), ("city", city))
        yield Entry(name, group=row["identifier"], split=split, columns=labels)


def _names(path: Path) -> set[str]:
    return {row["filename"] for row in csv_rows(path, ("filename",), delimiter="\t")}
