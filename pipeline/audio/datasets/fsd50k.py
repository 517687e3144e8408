"""FSD50K: 51,197 Freesound clips, 200 classes, several a clip. Fonseca et al., IEEE/ACM TASLP 2022.

Read: ``FSD50K.ground_truth/dev.csv`` (``fname, labels, mids, split``) and ``eval.csv`` (``fname, labels, mids``),
``FSD50K.metadata/{dev,eval}_clips_info_FSD50K.json`` (``uploader``, ``license`` of each clip),
``FSD50K.{dev,eval}_audio/``. The official splits are train, val and test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.audio.datasets.published import PublishedDataset, read_json
from pipeline.audio.entries import LABEL_SEPARATOR, Entry
from pipeline.audio.tables import csv_rows
from pipeline.errors import ManifestError
from pipeline.input_config import DatasetInput, SplitUse

CITATION = "E. Fonseca et al., FSD50K: an Open Dataset of Human-Labeled Sound Events, IEEE/ACM TASLP 2022"
SPLITS: dict[str, SplitUse] = {"train": "train", "val": "validation", "test": "omit"}


def described() -> PublishedDataset:
    """Return the dataset."""
    return PublishedDataset("fsd50k", "effects", "labels", "CC-BY-4.0", CITATION, entries, SPLITS)


def entries(source: DatasetInput) -> Iterator[Entry]:
    """Yield the clips of the development and the evaluation set that are unpacked; both need their metadata."""
    for part, extra in (("dev", ("split",)), ("eval", ())):
        table = source.root / "FSD50K.ground_truth" / f"{part}.csv"
        info = read_json(source.root / "FSD50K.metadata" / f"{part}_clips_info_FSD50K.json")
        for row in csv_rows(table, ("fname", "labels", "mids", *extra)):
            clip = _information(info, row["fname"], str(table))
            uploader = str(clip["uploader"])
            yield Entry(
                f"FSD50K.{part}_audio/{row['fname']}.wav", group=uploader, split=row.get("split", "test"),
                licence=str(clip["license"]), credit=f"{uploader} (Freesound {row['fname']})",
                columns=(("labels", _joined(row["labels"])), ("mids", _joined(row["mids"]))),
            )  # fmt: skip


def _information(info: Any, name: str, where: str) -> dict[str, Any]:
    clip = info.get(name) if isinstance(info, dict) else None
    if not isinstance(clip, dict) or "uploader" not in clip or "license" not in clip:
        raise ManifestError(
            f"{where}: no uploader and license are known of clip {name}", expected="clips_info of it"
        )
    return clip


def _joined(labels: str) -> str:
    return labels.replace(",", LABEL_SEPARATOR)
