"""MagnaTagATune: 25,863 music clips of 29 s, 188 tags. Law et al., ISMIR 2009.

Read: ``annotations_final.csv`` (tab; ``clip_id``, a 0/1 column a tag, ``mp3_path``), and the MP3s as ``0..f/*.mp3``,
at the root or in ``mp3/``. No official split: the usual one goes by folder (0 to b, c, d to f), from memory of
later papers. Three MP3s of the archive are empty and end in ``rejects.parquet``. Licence, from memory of
Magnatune's page: CC BY-NC-SA.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from pipeline.audio.datasets.published import PublishedDataset, below
from pipeline.audio.entries import LABEL_SEPARATOR, Entry
from pipeline.audio.tables import csv_rows
from pipeline.errors import ManifestError
from pipeline.input_config import DatasetInput, SplitUse

CITATION = "E. Law et al., Evaluation of Algorithms Using Games: The Case of Music Tagging, ISMIR 2009"
SPLITS: dict[str, SplitUse] = {"train": "train", "validation": "validation", "test": "omit"}
TOP_TAGS = 50
_EXCERPT = re.compile(r"-\d+-\d+\.mp3$")  # ...-<first second>-<last second>.mp3


def described() -> PublishedDataset:
    """Return the dataset."""
    return PublishedDataset("magnatagatune", "music", "tags", "CC-BY-NC-SA", CITATION, entries, SPLITS)


def entries(source: DatasetInput) -> Iterator[Entry]:
    """Yield its clips; ``label = "top50"`` gives the 50 most frequent tags alone. Groups are whole tracks."""
    path = source.root / "annotations_final.csv"
    rows = list(csv_rows(path, ("clip_id", "mp3_path"), delimiter="\t"))
    tags = [name for name in rows[0] if name not in ("clip_id", "mp3_path")] if rows else []
    counts = Counter(tag for row in rows for tag in tags if row[tag] == "1")
    frequent = set(sorted(counts, key=lambda tag: (-counts[tag], tag))[:TOP_TAGS])
    folder = "mp3/" if below(source.root, "0", "mp3/0").parent.name == "mp3" else ""
    for row in rows:
        place = row["mp3_path"]
        if not re.match(r"[0-9a-f]/", place):
            raise ManifestError(f"{path}: an mp3_path of another form", expected="0/name.mp3", got=place)
        mine = [tag for tag in tags if row[tag] == "1"]
        yield Entry(
            f"{folder}{place}", group=_EXCERPT.sub("", place.split("/", 1)[1]), split=_split(place[0]),
            columns=(
                ("tags", LABEL_SEPARATOR.join(mine)),
                ("top50", LABEL_SEPARATOR.join(tag for tag in mine if tag in frequent)),
            ),
        )  # fmt: skip


def _split(folder: str) -> str:
    if folder == "c":
        return "validation"
    return "test" if folder in "def" else "train"
