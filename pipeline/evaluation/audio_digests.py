"""Which sound a path holds: SHA-256 of its file, read again only where size or time of the file have changed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from pipeline import artifact
from pipeline.audio import packs
from pipeline.errors import StoreError
from pipeline.store import tables

INDEX = "audio_digests.parquet"
COLUMNS = ("path", "bytes", "mtime_ns", "sha256")
# A file may change twice within a tick of its clock: one this young is read again next time.
YOUNG_NS = 2_000_000_000


def digests(paths: Sequence[str], folder: Path) -> list[str]:
    """Return what names the sound of each path; equal sounds in different places have equal names.

    A clip in a pack is named by its pack and its row there; one whose file cannot be read by its path, so that it is
    never taken for any sound.

    Args:
        paths: of clips: files, or rows of packs (``pack.hdf5#17``).
        folder: where the index is kept that saves reading files again.
    """
    index = _read(folder / INDEX)
    found: dict[str, str] = {}
    fresh: dict[str, tuple[int, int, str]] = {}
    now = time.time_ns()
    for file in {_place(path)[0] for path in paths}:
        try:
            status = Path(file).stat()
            if not stat.S_ISREG(status.st_mode):
                continue
            known = index.get(file)
            if known is not None and known[:2] == (status.st_size, status.st_mtime_ns):
                found[file] = known[2]
                continue
            found[file] = artifact.file_digest(Path(file))
        except (OSError, ValueError):
            # What cannot be opened is refused by the decoder with its reason; here it has no content.
            continue
        if now - status.st_mtime_ns > YOUNG_NS:
            fresh[file] = (status.st_size, status.st_mtime_ns, found[file])
    if fresh:
        _write(folder / INDEX, {**_read(folder / INDEX), **fresh})
    return [_name(path, found) for path in paths]


def record(sounds: Mapping[str, Sequence[str]], file: Path, folder: Path) -> None:
    """Write to ``file`` what each task's clips sound like now; arguments as of :func:`unchanged`."""
    artifact.write_json(file, {name: digests(paths, folder) for name, paths in sounds.items()})


def unchanged(sounds: Mapping[str, Sequence[str]], file: Path, folder: Path) -> bool:
    """Return whether every clip that is there sounds as ``file`` recorded; one that is gone has not changed.

    Args:
        sounds: task to the paths of its clips.
        file: of :func:`record`; where it is absent or says nothing, everything has changed.
        folder: as of :func:`digests`.
    """
    try:
        recorded = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return not sounds
    for name, paths in sounds.items():
        before, now = recorded.get(name, []), digests(paths, folder)
        if len(before) != len(now):
            return False
        for path, old, new in zip(paths, before, now, strict=True):
            if old != new and os.path.lexists(_place(path)[0]):
                return False
    return True


def _place(path: str) -> tuple[str, int | None]:
    """Return the file, and the row of a pack."""
    packed = packs.reference(path)
    return (path, None) if packed is None else (str(packed[0]), packed[1])


def _name(path: str, found: dict[str, str]) -> str:
    file, row = _place(path)
    if file not in found:
        return hashlib.sha256(f"absent {path}".encode("utf-8", "surrogateescape")).hexdigest()
    return found[file] if row is None else hashlib.sha256(f"{found[file]}#{row}".encode()).hexdigest()


def _read(path: Path) -> dict[str, tuple[int, int, str]]:
    """Return the index; a damaged one is one that is not there, and every file is read again."""
    if not path.is_file():
        return {}
    try:
        table = tables.read(path)
        columns = [table[name].tolist() for name in COLUMNS]
    except (StoreError, KeyError):
        return {}
    return {name: (size, changed, sha) for name, size, changed, sha in zip(*columns, strict=True)}


def _write(path: Path, index: dict[str, tuple[int, int, str]]) -> None:
    # A name that is no UTF-8 does not go into the table: its file is read again.
    rows = [(name, *row) for name, row in sorted(index.items()) if name.isprintable()]
    artifact.write_bytes(path, tables.to_bytes(pd.DataFrame(rows, columns=list(COLUMNS))))
