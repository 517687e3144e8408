"""What a dataset's file says: its name, licence, splits, and how to read its metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.audio.entries import Entry, Listing
from pipeline.errors import ManifestError, near_matches
from pipeline.input_config import DatasetInput, SplitUse
from pipeline.registry import Registry

MAX_JSON_BYTES = 1 << 30


@dataclass(frozen=True)
class PublishedDataset:
    """A dataset's facts and its reader.

    Attributes:
        name: as the manifest calls it.
        kind: what it holds, of ``pipeline.manifest.KINDS``.
        label: the column that labels it where the recipe names none.
        licence: of a clip whose metadata name none.
        citation: authors, title, venue, year.
        entries: yields an ``Entry`` a clip, with every label in ``columns``.
        splits: use of each official split.
    """

    name: str
    kind: str
    label: str
    licence: str
    citation: str
    entries: Callable[[DatasetInput], Iterable[Entry]]
    splits: Mapping[str, SplitUse] = field(default_factory=dict)


datasets: Registry[PublishedDataset] = Registry(
    "dataset",
    {
        name: f"pipeline.audio.datasets.{name}:described"
        for name in (
            "esc50", "fsd50k", "urbansound8k", "fma", "magnatagatune", "openmic2018", "gtzan", "nsynth", "tess",
            "tau_scenes", "dear", "speech_commands",
        )
    },
)  # fmt: skip


def listing(source: DatasetInput) -> Listing:
    """Return the clips of a published dataset.

    Raises:
        ManifestError: its metadata are not where it publishes them, or lack a column.
    """
    dataset = datasets.build(source.kind)
    if not source.root.is_dir():
        raise ManifestError(
            f"{source.kind}: its root is no folder", expected=f"{dataset.name} unpacked", got=source.root
        )
    return Listing(source.root, dataset.name, _labelled(dataset, source), dataset.splits)


def _labelled(dataset: PublishedDataset, source: DatasetInput) -> Iterator[Entry]:
    wanted = source.label or dataset.label
    for entry in dataset.entries(source):
        columns = dict(entry.columns)
        if wanted not in columns:
            raise ManifestError(
                f"{dataset.name} has no label column {wanted!r}",
                expected=near_matches(wanted, columns),
                got=wanted,
            )
        licence = dataset.licence if entry.licence == "unknown" else entry.licence
        credit = dataset.citation if entry.credit == "unknown" else entry.credit
        yield replace(entry, label=columns[wanted], kind=dataset.kind, licence=licence, credit=credit)


def read_json(path: Path) -> Any:
    """Return the JSON of a metadata file.

    Raises:
        ManifestError: it is not there, is no JSON, or is larger than ``MAX_JSON_BYTES``.
    """
    if not path.is_file():
        raise ManifestError(f"{path} is not there", expected="a metadata file of the dataset")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ManifestError(f"{path} is too large", expected=f"at most {MAX_JSON_BYTES} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ManifestError(f"{path} is no JSON", got=error) from error


def fold_number(text: str, where: str) -> int:
    """Return a fold; raise ManifestError where ``text`` is no whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise ManifestError(f"{where}: a fold is no whole number", got=text) from error


def below(root: Path, *places: str) -> Path:
    """Return the first of ``places`` that exists below ``root``, else the first: archives nest differently."""
    return next((root / place for place in places if (root / place).exists()), root / places[0])
