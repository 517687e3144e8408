"""GTZAN: 1,000 music clips of 30 s, 10 genres. Tzanetakis and Cook, IEEE Transactions on Speech and Audio 2002.

Read: ``genres/<genre>/<genre>.00000.wav`` (or ``genres_original/``, or ``.au``); it publishes no metadata, split or
licence. Sturm ("The GTZAN dataset", arXiv 1306.1461, 2013) found repetitions, mislabellings and distorted clips in
it, so scores on random splits are too good. The *fault-filtered* split of Kereliuk, Sturm and Larsen (IEEE TMM
2015) drops them and separates artists: three lists, 443 + 197 + 290 clips, kept by third parties as
``train_filtered.txt``, ``valid_filtered.txt``, ``test_filtered.txt`` with a ``blues/blues.00029.wav`` a line. Give
their folder as ``lists``. ``jazz.00054`` of common copies cannot be decoded and ends in ``rejects.parquet``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.audio.datasets.published import PublishedDataset, below
from pipeline.audio.entries import Entry
from pipeline.audio.sources import walk
from pipeline.errors import ManifestError
from pipeline.input_config import DatasetInput, SplitUse

CITATION = "G. Tzanetakis and P. Cook, Musical Genre Classification of Audio Signals, IEEE TSAP 2002"
SPLITS: dict[str, SplitUse] = {"train": "train", "valid": "validation", "test": "omit", "faulty": "omit"}
_CLIP = re.compile(r"(?P<genre>[a-z]+)/(?P<stem>(?P=genre)\.\d{5})\.(?:wav|au|mp3|flac)$")


def described() -> PublishedDataset:
    """Return the dataset."""
    return PublishedDataset("gtzan", "music", "genre", "unknown (none is given)", CITATION, entries, SPLITS)


def entries(source: DatasetInput) -> Iterator[Entry]:
    """Yield its clips; with ``lists``, clips in none of them carry the split ``faulty``."""
    splits = None if source.lists is None else _filtered(source.lists)
    folder = below(source.root, "genres", "genres_original", "Data/genres_original")
    folder = folder if folder.is_dir() else source.root
    for path in walk(folder):
        found = _CLIP.search(path)
        if found is None:
            continue
        split = "" if splits is None else splits.get(found["stem"], "faulty")
        place = (folder / path).relative_to(source.root)
        yield Entry(str(place), group=found["stem"], split=split, columns=(("genre", found["genre"]),))


def _filtered(folder: Path) -> dict[str, str]:
    splits: dict[str, str] = {}
    for name in ("train", "valid", "test"):
        path = folder / f"{name}_filtered.txt"
        if not path.is_file():
            raise ManifestError(f"{path} is not there", expected="the fault-filtered lists of GTZAN")
        for line in path.read_text(encoding="utf-8").split():
            if splits.setdefault(Path(line).stem, name) != name:
                raise ManifestError(
                    f"{line} is in two of the lists in {folder}", got=f"{splits[Path(line).stem]}, {name}"
                )
    return splits
