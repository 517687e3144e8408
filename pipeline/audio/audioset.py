"""AudioSet as people have it: the published segment lists with a folder of clips, or HDF5 packs.

Gemmeke et al., "Audio Set: an ontology and human-labeled dataset for audio events", ICASSP 2017. Labels are
CC BY 4.0; every sound belongs to its uploader.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.audio import packs
from pipeline.audio.entries import LABEL_SEPARATOR, Confinement, Entry, Listing
from pipeline.audio.packages import SOUND_SUFFIXES
from pipeline.audio.sources import walk
from pipeline.audio.tables import csv_rows
from pipeline.errors import ManifestError
from pipeline.input_config import AudioSetInput, LabelAs, PackInput, SplitUse

LICENCE = "YouTube, each uploader's; labels CC-BY-4.0"
CLASS_LABELS = "class_labels_indices.csv"
SPLITS: dict[str, SplitUse] = {"eval": "omit"}  # the evaluation set is nobody's training data
_SPLIT = re.compile(r"(balanced_train|unbalanced_train|eval)(?:_|$)", re.I)
_ID_LENGTH = 11
_MISSING = ("missing", "no file of this clip lies below the root")


class ClassLabels:
    """``class_labels_indices.csv``: index, mid and display name of the 527 classes.

    Args:
        path: the table, or None where the input has none.
        label_as: how classes are written in the manifest.
        where: the input, for messages.

    Raises:
        ManifestError: the table is damaged, or is needed and not there.
    """

    def __init__(self, path: Path | None, label_as: LabelAs, where: str) -> None:
        self.label_as, self.where = label_as, where
        self._rows: list[tuple[str, str, str]] = []
        if path is not None:
            for row in csv_rows(path, ("index", "mid", "display_name")):
                self._rows.append((row["mid"], row["index"], row["display_name"]))
            if [index for _, index, _ in self._rows] != [str(number) for number in range(len(self._rows))]:
                raise ManifestError(f"{path}: its index does not count from 0", expected="0, 1, 2, ...")
        self._of_mid = {row[0]: row for row in self._rows}

    def of_mids(self, mids: list[str]) -> str:
        """Return the label of a clip that carries these mids."""
        if self.label_as == "mid" and not self._rows:
            return LABEL_SEPARATOR.join(mids)
        self._require(1)
        unknown = [mid for mid in mids if mid not in self._of_mid]
        if unknown:
            raise ManifestError(f"{self.where}: a class that {CLASS_LABELS} does not list", got=unknown[0])
        return self._joined([self._of_mid[mid] for mid in mids])

    def of_indices(self, indices: tuple[int, ...] | None) -> str:
        """Return the label of a clip whose target sets these classes."""
        if indices is None:
            return ""
        if self.label_as == "index":
            return LABEL_SEPARATOR.join(map(str, indices))
        self._require(packs.CLASSES)
        return self._joined([self._rows[index] for index in indices])

    def _joined(self, rows: list[tuple[str, str, str]]) -> str:
        column = ("mid", "index", "name").index(self.label_as)
        return LABEL_SEPARATOR.join(row[column] for row in rows)

    def _require(self, rows: int) -> None:
        if len(self._rows) < rows:
            raise ManifestError(
                f"{self.where}: label_as = {self.label_as!r} needs {CLASS_LABELS}, all {packs.CLASSES} rows of it",
                got=f"{len(self._rows)} rows", run=f"class_labels = .../{CLASS_LABELS}, or label_as = 'index'",
            )  # fmt: skip


def segment_listing(source: AudioSetInput) -> Listing:
    """Return the clips that the segment lists name, each found below the root by its YouTube id, or missing.

    Raises:
        ManifestError: a list is not there or not of the published form.
    """
    Confinement(source.root, follow_links=True, where="audioset")
    labels = ClassLabels(_beside(source.class_labels, source.segments[0]), source.label_as, "audioset")
    return Listing(source.root, "audioset", _segment_entries(source, labels), SPLITS)


def segments(path: Path) -> Iterator[tuple[str, float, float, list[str]]]:
    """Yield (YouTube id, start in seconds, end in seconds, mids) of a published segment list.

    Raises:
        ManifestError: no such file, or a row that is none.
    """
    if not path.is_file():
        raise ManifestError(f"{path} is not there", expected="a segment list of AudioSet")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.reader(file, skipinitialspace=True), 1):
                if not row or row[0].startswith("#"):
                    continue
                try:
                    name, start, end, mids = row
                    times = float(start), float(end)
                except ValueError as error:
                    expected = 'YTID, start_seconds, end_seconds, "mid,mid"'
                    raise ManifestError(
                        f"{path}, row {number}: no segment", expected=expected, got=row
                    ) from error
                if len(name) != _ID_LENGTH or not re.fullmatch(r"[\w-]+", name, re.A):
                    raise ManifestError(
                        f"{path}, row {number}: no YouTube id", expected="11 of A-Za-z0-9_-", got=name
                    )
                yield name, *times, [mid.strip() for mid in mids.split(",") if mid.strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path} is no segment list", got=error) from error


def pack_listing(source: PackInput) -> Listing:
    """Return the rows of one pack, of a folder of packs, or of the packs that a PANNs index names.

    Raises:
        ManifestError: no pack there, an index names one that is not found or disagrees with it, or a pack is
            of the other layout.
        Hdf5Error: a pack is damaged or refused.
    """
    where = source.path
    if not where.exists():
        raise ManifestError(
            f"{where} is not there", expected="a pack, a folder of packs or a PANNs index file"
        )
    if where.is_dir():
        root, files = where, [where / name for name in walk(where) if name.lower().endswith(packs.SUFFIXES)]
        files = [file for file in files if not packs.is_index(file)]
        if not files:
            raise ManifestError(f"{where} holds no pack", expected=", ".join(packs.SUFFIXES))
        entries = _pack_entries(source, root, files)
    elif packs.is_index(where):
        root = source.root or where.parent
        entries = _index_entries(source, root)
    else:
        root, entries = where.parent, _pack_entries(source, where.parent, [where])
    return Listing(root, "audioset", entries, SPLITS)


def _segment_entries(source: AudioSetInput, labels: ClassLabels) -> Iterator[Entry]:
    files = _by_stem(source.root)
    for path in source.segments:
        split = _official_split(path.stem)
        for name, start, end, mids in segments(path):
            found = next((files[stem] for stem in _stems(name, start, end) if stem in files), None)
            entry = Entry(
                found or f"Y{name}", label=labels.of_mids(mids), group=name, split=split,
                licence=LICENCE, credit=f"YouTube {name}",
            )  # fmt: skip
            yield entry if found else replace(entry, reason=_MISSING[0], problem=_MISSING[1])


def _by_stem(root: Path) -> dict[str, str]:
    """Return the file of each base name; of several the best known suffix, then the first by path."""
    files: dict[str, str] = {}
    for path in walk(root):
        if any(part.startswith(".") for part in Path(path).parts):
            continue
        stem = Path(path).stem
        if stem not in files or _rank(path) < _rank(files[stem]):
            files[stem] = path
    return files


def _rank(path: str) -> int:
    suffix = Path(path).suffix.lower()
    return SOUND_SUFFIXES.index(suffix) if suffix in SOUND_SUFFIXES else len(SOUND_SUFFIXES)


def _stems(name: str, start: float, end: float) -> Iterator[str]:
    """Yield the base names that a clip is known by: with ``Y`` or not, with its times in seconds or ms or not."""
    times = ["", f"_{start:.3f}_{end:.3f}", f"_{start:g}_{end:g}", f"_{start:g}"]
    times += [f"_{start * 1000:.0f}_{end * 1000:.0f}", f"_{start * 1000:.0f}"]
    for suffix in times:
        yield f"Y{name}{suffix}"
        yield f"{name}{suffix}"


def _pack_entries(source: PackInput, root: Path, files: list[Path]) -> Iterator[Entry]:
    labels = ClassLabels(_beside(source.class_labels, files[0]), source.label_as, source.kind)
    for file in files:
        pack = _pack(source, file)
        try:
            for row in pack.table():
                path = f"{file.relative_to(root)}#{row.row}"
                yield _pack_entry(path, row.name, row.classes, file.stem, labels)
        finally:
            pack.close()


def _index_entries(source: PackInput, root: Path) -> Iterator[Entry]:
    labels = ClassLabels(_beside(source.class_labels, source.path), source.label_as, source.kind)
    confinement = Confinement(root, follow_links=source.follow_links, where=str(source.path))
    places: dict[str, list[str]] = {}
    for name in walk(root):
        if name.lower().endswith(packs.SUFFIXES):
            places.setdefault(Path(name).name, []).append(name)
    names: dict[str, tuple[Path, list[str]]] = {}
    for row in packs.index_rows(source.path):
        base = re.split(r"[/\\]", row.pack)[-1]
        if base not in names:
            file = root / confinement.relative(_resolved(source, root, base, places))
            pack = _pack(source, file)
            names[base] = file, [entry.name for entry in pack.table()]
            pack.close()
        file, found = names[base]
        if not 0 <= row.row < len(found) or found[row.row] != row.name:
            got = found[row.row] if 0 <= row.row < len(found) else f"{len(found)} rows"
            raise ManifestError(
                f"{source.path} and {file} disagree on row {row.row}", expected=row.name, got=got,
                run="use the index file that was made from these packs",
            )  # fmt: skip
        yield _pack_entry(f"{file.relative_to(root)}#{row.row}", row.name, row.classes, file.stem, labels)


def _resolved(source: PackInput, root: Path, base: str, places: dict[str, list[str]]) -> str:
    found = [name for name in places.get(base, ()) if not packs.is_index(root / name)]
    if len(found) != 1:
        raise ManifestError(
            f"{source.path} names the pack {base!r}, which lies {len(found)} times below {root}",
            expected="once", got=", ".join(found[:3]) or "no such file", run="root = the folder of its packs",
        )  # fmt: skip
    return found[0]


def _pack(source: PackInput, file: Path) -> packs.Pack:
    pack = packs.Pack(file)
    kind = "mp3_hdf5" if pack.kind == "mp3" else "panns_hdf5"
    if kind != source.kind:
        pack.close()
        raise ManifestError(f"{file} is of the other layout", expected=source.kind, got=f'kind = "{kind}"')
    return pack


def _pack_entry(
    path: str, name: str, classes: tuple[int, ...] | None, stem: str, labels: ClassLabels
) -> Entry:
    if not name:
        return Entry(
            path, split=_official_split(stem), reason=_MISSING[0], problem="the pack has no clip in this row"
        )
    clip = Path(name).stem
    clip = clip[1:] if len(clip) == _ID_LENGTH + 1 and clip.startswith("Y") else clip
    return Entry(
        path, label=labels.of_indices(classes), group=clip, split=_official_split(stem),
        licence=LICENCE, credit=f"YouTube {clip}",
    )  # fmt: skip


def _official_split(stem: str) -> str:
    found = _SPLIT.match(stem)
    return found[1].lower() if found else stem


def _beside(given: Path | None, neighbour: Path) -> Path | None:
    if given is not None:
        return given
    default = neighbour.parent / CLASS_LABELS
    return default if default.is_file() else None
