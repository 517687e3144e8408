"""FMA: music of the Free Music Archive, 30 s clips, genres. Defferrard et al., ISMIR 2017.

Read: ``fma_metadata/tracks.csv``, whose header takes three lines (group, name, ``track_id``), and
``fma_<subset>/000/000002.mp3``. FMA-small is 8,000 clips of 8 genres; a few of its MP3s are known to be empty or cut
and end in ``rejects.parquet``. Each track has its own licence; groups are artists, as the official splits are.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from pipeline.audio.datasets.published import PublishedDataset
from pipeline.audio.entries import Entry
from pipeline.errors import ManifestError
from pipeline.input_config import DatasetInput, SplitUse

CITATION = "M. Defferrard et al., FMA: A Dataset for Music Analysis, ISMIR 2017"
SPLITS: dict[str, SplitUse] = {"training": "train", "validation": "validation", "test": "omit"}
SUBSETS = {"small": ("small",), "medium": ("small", "medium"), "large": ("small", "medium", "large")}
_WANTED = {
    "split": ("set", "split"),
    "subset": ("set", "subset"),
    "genre": ("track", "genre_top"),
    "licence": ("track", "license"),
    "artist": ("artist", "id"),
    "name": ("artist", "name"),
    "title": ("track", "title"),
}


def described() -> PublishedDataset:
    """Return the dataset."""
    return PublishedDataset("fma", "music", "genre_top", "unknown (each track's)", CITATION, entries, SPLITS)


def entries(source: DatasetInput) -> Iterator[Entry]:
    """Yield the tracks of ``subset`` (default small)."""
    subset = source.subset or "small"
    for track, row in _tracks(source.root / "fma_metadata" / "tracks.csv"):
        if row["subset"] not in SUBSETS[subset]:
            continue
        yield Entry(
            f"fma_{subset}/{track // 1000:03d}/{track:06d}.mp3", group=f"artist {row['artist']}", split=row["split"],
            licence=" ".join(row["licence"].split()) or "unknown", credit=f"{row['name']}: {row['title']}",
            columns=(("genre_top", row["genre"]),),
        )  # fmt: skip


def _tracks(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    if not path.is_file():
        raise ManifestError(f"{path} is not there", expected="fma_metadata.zip unpacked beside the clips")
    csv.field_size_limit(1 << 20)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = list(zip(next(reader, []), next(reader, []), strict=False))
            missing = [name for name in _WANTED.values() if name not in header]
            if missing or (next(reader, None) or [""])[0] != "track_id":
                got = ".".join(missing[0]) if missing else "no line that begins with track_id"
                raise ManifestError(
                    f"{path} is not FMA's table of tracks", expected="a header of 3 lines", got=got
                )
            places = {key: header.index(name) for key, name in _WANTED.items()}
            for row in reader:
                if len(row) != len(header) or not row[0].isdecimal():
                    raise ManifestError(f"{path}, line {reader.line_num}: no track", got=row[:1])
                yield int(row[0]), {key: row[place] for key, place in places.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path} is no CSV", got=error) from error
