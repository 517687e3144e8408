"""AudioSet packs: HDF5 files of thousands of clips, read row by row without unpacking.

Two layouts are in use. PANNs (Kong et al., IEEE/ACM TASLP 2020): ``waveform`` int16 (n, samples), written as
the float samples times 32,767, cut and padded with zeros; its index files name ``hdf5_path`` and
``index_in_hdf5``. PaSST (Koutini et al., Interspeech 2022) and EfficientAT (Schmid et al., ICASSP 2023):
``mp3``, the bytes of one MP3 a row, and targets as bits. In both ``audio_name`` names the clips, and an empty
name is a clip that the packer did not have: missing, not silence.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from pipeline import hdf5_guard
from pipeline.errors import Hdf5Error

if TYPE_CHECKING:
    import h5py

CLASSES = 527  # of AudioSet's published labels (Gemmeke et al., ICASSP 2017)
SUFFIXES = (".h5", ".hdf5", ".hdf")
PADDING_SECONDS = 0.02  # a longer run of zeros at the end is the pack's padding, not sound
MAX_MP3_BYTES = 16 << 20
MAX_NAME_BYTES = 1024
BLOCK_ROWS = 1 << 14
OPEN_PACKS = 64
_REFERENCE = re.compile(
    rf"(?P<pack>.+(?:{'|'.join(map(re.escape, SUFFIXES))}))#(?P<row>\d{{1,9}})", re.I | re.S
)


@dataclass(frozen=True)
class PackRow:
    """One row of a pack's table.

    Attributes:
        row: its place.
        name: ``audio_name``; empty = the clip is missing.
        classes: indices of the classes that its target sets; None where the file holds no targets.
    """

    row: int
    name: str
    classes: tuple[int, ...] | None


@dataclass(frozen=True)
class IndexRow:
    """One row of a PANNs index file: a clip and where it lies. ``pack`` is as written, on its author's machine."""

    name: str
    classes: tuple[int, ...] | None
    pack: str
    row: int


def reference(path: os.PathLike[str] | str | bytes) -> tuple[Path, int] | None:
    """Return (pack, row) where ``path`` is ``<pack>.hdf5#<row>``, else None."""
    found = _REFERENCE.fullmatch(os.fsdecode(path))
    return (Path(found["pack"]), int(found["row"])) if found else None


class Pack:
    """One open pack of either layout.

    Args:
        path: of the file.

    Raises:
        Hdf5Error: it is no HDF5, of neither layout, or anything that ``hdf5_guard`` refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, hdf5_guard.opened(path)
        try:
            self.kind = self._kind()
            if self.kind == "mp3":
                self._sound = hdf5_guard.checked_dataset(self.file, "mp3", kinds="u", rank=1, variable=True)
                self.sample_rate_hz = 0
            else:
                self._sound = hdf5_guard.checked_dataset(
                    self.file, "waveform", kinds="i", rank=2, max_item_bytes=2
                )
                self._check_waveform()
                self.sample_rate_hz = hdf5_guard.integer_attribute(self.file, "sample_rate")
            self.rows = int(self._sound.shape[0])
        except BaseException:
            self.file.close()
            raise

    def table(self) -> Iterator[PackRow]:
        """Yield the name and the classes of every row, in order.

        Raises:
            Hdf5Error: names or targets are missing, or are not as many as the rows.
        """
        yield from _table(self.file, self.rows, str(self.path))

    def waveform(self, row: int) -> Float32[np.ndarray, " samples"]:
        """Return row ``row`` of a PANNs pack: its int16 divided by 32,767, without the padding at its end."""
        samples = self._row(row)
        sounding = np.flatnonzero(samples)
        end = int(sounding[-1]) + 1 if len(sounding) else 0
        if len(samples) - end <= PADDING_SECONDS * self.sample_rate_hz and end:
            end = len(samples)
        return samples[:end].astype(np.float32) / np.float32(32_767)

    def mp3(self, row: int) -> bytes:
        """Return the MP3 file in row ``row``.

        Raises:
            Hdf5Error: the row is damaged or claims more than ``MAX_MP3_BYTES``.
        """
        if 0 <= row < self.rows:
            claimed = hdf5_guard.variable_bytes(self._sound, row)
            if claimed > MAX_MP3_BYTES:
                raise Hdf5Error(
                    f"{self.path}: row {row} claims {claimed} bytes of MP3",
                    expected=f"at most {MAX_MP3_BYTES}",
                )
        return bytes(self._row(row).tobytes())

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _kind(self) -> str:
        for name in ("mp3", "waveform"):
            if hdf5_guard.has(self.file, name):
                return name
        raise Hdf5Error(f"{self.path} is no AudioSet pack", expected="a dataset mp3 or waveform")

    def _check_waveform(self) -> None:
        if self._sound.dtype != np.dtype(np.int16):
            raise Hdf5Error(
                f"{self.path}: waveform has the wrong type", expected="int16", got=self._sound.dtype
            )
        row_bytes = int(self._sound.shape[1]) * 2
        if row_bytes > hdf5_guard.MAX_CHUNK_BYTES:
            raise Hdf5Error(
                f"{self.path}: a row of waveform has {row_bytes} bytes",
                expected=f"at most {hdf5_guard.MAX_CHUNK_BYTES}",
            )

    def _row(self, row: int) -> np.ndarray:
        if not 0 <= row < self.rows:
            raise Hdf5Error(f"{self.path} has no row {row}", expected=f"0 to {self.rows - 1}")
        return hdf5_guard.rows_of(self._sound, row)


def index_rows(path: Path) -> Iterator[IndexRow]:
    """Yield the clips that a PANNs index file lists.

    Raises:
        Hdf5Error: a column is missing, of another type, or the columns differ in length.
    """
    with hdf5_guard.opened(path) as file:
        places = hdf5_guard.checked_dataset(file, "index_in_hdf5", kinds="iu", rank=1)
        packs = hdf5_guard.checked_dataset(
            file, "hdf5_path", kinds="S", rank=1, max_item_bytes=MAX_NAME_BYTES
        )
        _same_length(packs, int(places.shape[0]))
        blocks = _blocks(int(places.shape[0]))
        columns = (
            (hdf5_guard.rows_of(packs, slice(a, b)), hdf5_guard.rows_of(places, slice(a, b)))
            for a, b in blocks
        )
        flat = ((name, row) for names, rows in columns for name, row in zip(names, rows, strict=True))
        for entry, (pack, row) in zip(_table(file, int(places.shape[0]), str(path)), flat, strict=True):
            yield IndexRow(entry.name, entry.classes, _text(pack), int(row))


def is_index(path: Path) -> bool:
    """Whether the HDF5 file ``path`` is a PANNs index and no pack.

    Raises:
        Hdf5Error: it is no HDF5.
    """
    with hdf5_guard.opened(path) as file:
        return hdf5_guard.has(file, "hdf5_path") and hdf5_guard.has(file, "index_in_hdf5")


def _table(file: h5py.File, rows: int, where: str) -> Iterator[PackRow]:
    names = hdf5_guard.checked_dataset(file, "audio_name", kinds="S", rank=1, max_item_bytes=MAX_NAME_BYTES)
    _same_length(names, rows)
    targets = None
    if hdf5_guard.has(file, "target"):
        targets = hdf5_guard.checked_dataset(file, "target", kinds="bu", rank=2, max_item_bytes=1)
        _same_length(targets, rows)
        widths = {CLASSES, (CLASSES + 7) // 8} if targets.dtype.kind == "u" else {CLASSES}
        if int(targets.shape[1]) not in widths:
            raise Hdf5Error(
                f"{where}: target has {targets.shape[1]} columns",
                expected=f"{CLASSES} booleans, or their {(CLASSES + 7) // 8} packed bytes",
            )
    for first, last in _blocks(rows):
        place = slice(first, last)
        found = hdf5_guard.rows_of(names, place)
        hot = [None] * len(found) if targets is None else _classes(hdf5_guard.rows_of(targets, place))
        for offset, (name, classes) in enumerate(zip(found, hot, strict=True)):
            yield PackRow(first + offset, _text(name), classes)


def _classes(block: np.ndarray) -> list[Any]:
    bits = block if block.shape[1] == CLASSES else np.unpackbits(block, axis=-1, count=CLASSES)
    rows, columns = np.nonzero(bits)
    return [
        tuple(part.tolist()) for part in np.split(columns, np.searchsorted(rows, np.arange(1, len(bits))))
    ]


def _blocks(rows: int) -> list[tuple[int, int]]:
    return [(first, min(first + BLOCK_ROWS, rows)) for first in range(0, rows, BLOCK_ROWS)]


def _same_length(column: h5py.Dataset, rows: int) -> None:
    if int(column.shape[0]) != rows:
        raise Hdf5Error(
            f"{column.file.filename}: {column.name} has another number of rows",
            expected=rows,
            got=column.shape[0],
        )


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "backslashreplace")


class OpenPacks:
    """Packs of this process, each opened once. What a parent opened is not used: a fork breaks HDF5's files."""

    def __init__(self, maximum: int = OPEN_PACKS) -> None:
        self.maximum = maximum
        self._packs: OrderedDict[Path, Pack] = OrderedDict()
        self._process = os.getpid()
        self._lock = threading.Lock()

    def get(self, path: Path) -> Pack:
        """Return the open pack of ``path``.

        Raises:
            Hdf5Error: it cannot be opened, or is refused.
        """
        with self._lock:
            if self._process != os.getpid():
                self._packs, self._process = OrderedDict(), os.getpid()
            pack = self._packs.get(path)
            if pack is None:
                pack = self._packs[path] = Pack(path)
                if len(self._packs) > self.maximum:
                    self._packs.popitem(last=False)[1].close()
            self._packs.move_to_end(path)
            return pack
