"""Published logits, one row a clip: EfficientAT's ``.npy`` with names, CED's top-k HDF5 with a parquet index.

``.npy``: (clips, classes), with the clips' names in another file (Schmid et al., "Efficient Large-Scale Audio
Tagging via Transformer-to-CNN Knowledge Distillation", ICASSP 2023). HDF5: ``topk_values`` float16 after a
sigmoid, ``topk_indexes`` int16, and beside it a ``.parquet`` of filename, start and end (Dinkel et al., "CED:
Consistent Ensemble Distillation for Audio Tagging", ICASSP 2024).
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy
import pandas
import pyarrow.parquet

from pipeline import hdf5_guard
from pipeline.artifact import file_digest
from pipeline.config import digest
from pipeline.errors import StoreError
from pipeline.store import topk

Activation = Literal["logits", "sigmoid", "softmax"]

MAX_INDEX_BYTES = 2 << 30
MAX_CLASSES = 100_000
# float16 holds no probability nearer to 1 than this, nor should a logit be infinite for want of digits.
PROBABILITY_FLOOR = 1e-6
_YOUTUBE = re.compile(r"Y?([A-Za-z0-9_-]{11})(?:_\d+(?:\.\d+)?){0,2}")


@dataclass(frozen=True)
class Entry:
    """Where a clip's logits are: which row of the file, and which part of the clip they were made from."""

    row: int
    start_seconds: float = 0.0
    end_seconds: float = float("inf")


class LogitsFile(Protocol):
    """Logits by clip.

    Attributes:
        classes: of each row.
        top_k: how many logits a row holds, None = all.
        digest: over the files' content: it names the array.
        entries: clip id to its entries; several where the file cuts clips into chunks or lists one twice.
        note: what a user of the logits must know.
    """

    classes: int
    top_k: int | None
    digest: str
    entries: dict[str, list[Entry]]
    note: str

    def read(self, rows: numpy.ndarray) -> dict[str, numpy.ndarray]:
        """Return ``logits`` (rows, classes), or ``values``, ``indices`` and ``tail``, float32; NaN = unusable."""
        ...


def clip_id(name: str) -> str:
    """Return the YouTube id that a clip's file name holds, or the name without folder and suffix."""
    stem = re.sub(r"\.(wav|flac|mp3|m4a|ogg|opus)$", "", Path(name.strip()).name, flags=re.IGNORECASE)
    found = _YOUTUBE.fullmatch(stem)
    return found[1] if found else stem


class NpyLogits:
    """A ``.npy`` of (clips, classes), mapped and not read, with the clips' names.

    Args:
        path: the array.
        names: ``.csv`` (name per line, or name,row), ``.json`` (list of names, or name to row) or ``.npz``
            (one array of names); or a list.
        activation: what the values are.

    Raises:
        StoreError: another shape or type, names that do not fit it, or a pickle.
    """

    top_k: int | None = None
    note: str = ""

    def __init__(self, path: Path, names: Path, activation: Activation = "logits") -> None:
        _refuse_pickle(names)
        try:
            self._values = numpy.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise StoreError(
                f"{path} is no array of numbers", expected="a .npy of (clips, classes)", got=error
            ) from error
        if (
            not isinstance(self._values, numpy.ndarray) or self._values.ndim != 2
            or self._values.dtype.kind != "f" or not 1 < self._values.shape[1] <= MAX_CLASSES
        ):  # fmt: skip
            got = getattr(self._values, "shape", type(self._values).__name__)
            raise StoreError(f"{path} holds no logits", expected="floats of (clips, classes)", got=got)
        self.path, self.activation = path, activation
        self.classes = int(self._values.shape[1])
        self.entries = _entries_of(read_names(names), len(self._values), names)
        self.digest = _combined(file_digest(path), file_digest(names), activation)

    def read(self, rows: numpy.ndarray) -> dict[str, numpy.ndarray]:
        """Return ``logits`` (rows, classes) float32."""
        # Rising order: a row of a mapped file costs a seek.
        order = numpy.argsort(rows, kind="stable")
        values = numpy.empty((len(rows), self.classes), dtype=numpy.float32)
        values[order] = self._values[rows[order]]
        return {"logits": _as_logits(values, self.activation)}


class TopKHdf5Logits:
    """CED's pair: ``topk_values`` and ``topk_indexes`` (clips, k) with a parquet of filename, start, end.

    Args:
        path: the HDF5 file.
        names: the index; default the same name with ``.parquet``.
        activation: what the values are.
        classes: of the teacher; the file does not say.

    Raises:
        Hdf5Error: an HDF5 file with something else, or something hostile, in it.
        StoreError: an index that does not fit it.
    """

    note: str = (
        "the file holds no tail: each dropped class is given the smallest kept probability shared over all "
        "dropped ones, as its authors' reader does; its clips were augmented before the teacher heard them"
    )

    def __init__(
        self,
        path: Path,
        names: Path | None = None,
        activation: Activation = "sigmoid",
        classes: int = 527,
    ) -> None:
        index = names if names is not None else path.with_suffix(".parquet")
        _refuse_pickle(index)
        self.path, self.activation, self.classes = path, activation, classes
        self._file = hdf5_guard.opened(path)
        self._values = hdf5_guard.checked_dataset(self._file, "topk_values", kinds="f", rank=2)
        self._indices = hdf5_guard.checked_dataset(self._file, "topk_indexes", kinds="iu", rank=2)
        shape = self._values.shape
        if shape != self._indices.shape or not 1 <= shape[1] < classes <= MAX_CLASSES:
            raise StoreError(
                f"{path} holds no top-k of {classes} classes",
                expected=f"topk_values and topk_indexes of one shape, k below {classes}",
                got=f"{shape} and {self._indices.shape}",
            )
        self.top_k: int | None = int(shape[1])
        self.entries = _entries_of(read_names(index), shape[0], index)
        self.digest = _combined(file_digest(path), file_digest(index), f"{activation} {classes}")

    def read(self, rows: numpy.ndarray) -> dict[str, numpy.ndarray]:
        """Return ``values`` and ``indices`` (rows, k), falling, and ``tail`` (rows,)."""
        wanted, back = numpy.unique(rows, return_inverse=True)
        values = self._values[wanted][back].astype(numpy.float32)
        indices = self._indices[wanted][back].astype(numpy.int64)
        ordered = numpy.sort(indices, axis=1)
        wrong = (indices < 0).any(axis=1) | (indices >= self.classes).any(axis=1)
        wrong |= (numpy.diff(ordered, axis=1) == 0).any(axis=1)
        dropped = self.classes - values.shape[1]
        smallest = values.min(axis=1)
        if self.activation == "logits":
            share = _as_logits(_sigmoid(smallest) / dropped, "sigmoid")
        else:
            share = _as_logits(smallest / dropped, self.activation)
        values = _as_logits(values, self.activation)
        falling = numpy.argsort(-values, axis=1, kind="stable")
        values = numpy.take_along_axis(values, falling, axis=1)
        indices = numpy.take_along_axis(indices, falling, axis=1)
        values[wrong], share[wrong] = numpy.nan, numpy.nan
        indices[wrong] = topk.NO_CLASS
        return {"values": values, "indices": indices, "tail": share + numpy.float32(numpy.log(dropped))}


def read_names(path: Path) -> pandas.DataFrame:
    """Return ``name`` and, where the file has them, ``row``, ``start`` and ``end`` of each entry.

    Raises:
        StoreError: unreadable, too large, or a pickle.
    """
    _refuse_pickle(path)
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise StoreError(
                f"{path} is too large for a list of names", expected=f"at most {MAX_INDEX_BYTES}"
            )
        table: pandas.DataFrame = _READERS.get(path.suffix.lower(), _csv_names)(path)
    except (OSError, ValueError, KeyError, RecursionError, csv.Error, pyarrow.ArrowException) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"{path} is no list of names: {error}", expected=".csv, .json, .npz or .parquet"
        ) from error
    return table


def _csv_names(path: Path) -> pandas.DataFrame:
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.reader(file) if line]
    if lines and lines[0][0].strip().lower() in ("name", "names", "filename", "file", "id", "ytid"):
        lines = lines[1:]
    table = pandas.DataFrame({"name": [line[0] for line in lines]})
    if lines and all(len(line) > 1 and line[1].strip().isdigit() for line in lines):
        table["row"] = [int(line[1]) for line in lines]
    return table


def _json_names(path: Path) -> pandas.DataFrame:
    found = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(found, dict):
        return pandas.DataFrame({"name": list(found), "row": [int(row) for row in found.values()]})
    if not isinstance(found, list):
        raise StoreError(
            f"{path} is no list of names", expected="[names] or {name: row}", got=type(found).__name__
        )
    return pandas.DataFrame({"name": [str(name) for name in found]})


def _npz_names(path: Path) -> pandas.DataFrame:
    with numpy.load(path, allow_pickle=False) as archive:
        names = archive[archive.files[0]]
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise ValueError(f"its first array is no list of names: {names.dtype} {names.shape}")
    decoded = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    return pandas.DataFrame({"name": decoded})


def _parquet_names(path: Path) -> pandas.DataFrame:
    file = pyarrow.parquet.ParquetFile(path)
    claimed = sum(file.metadata.row_group(n).total_byte_size for n in range(file.metadata.num_row_groups))
    if claimed > MAX_INDEX_BYTES:
        raise ValueError(f"it would unpack to {claimed} bytes")
    wanted = [name for name in ("filename", "start", "end") if name in file.schema_arrow.names]
    table: pandas.DataFrame = file.read(columns=wanted).to_pandas()
    return table.rename(columns={"filename": "name"})


_READERS: dict[str, Any] = {
    ".csv": _csv_names,
    ".tsv": _csv_names,
    ".txt": _csv_names,
    ".json": _json_names,
    ".npz": _npz_names,
    ".parquet": _parquet_names,
}


def _entries_of(names: pandas.DataFrame, rows: int, path: Path) -> dict[str, list[Entry]]:
    if "name" not in names.columns:
        raise StoreError(
            f"{path} names no clips", expected="a column filename or name", got=list(names.columns)
        )
    numbers = names["row"].tolist() if "row" in names.columns else list(range(len(names)))
    if len(numbers) != rows and "row" not in names.columns:
        raise StoreError(f"{path} does not fit the logits", expected=f"{rows} names", got=len(numbers))
    if numbers and not 0 <= min(numbers) <= max(numbers) < rows:
        raise StoreError(
            f"{path} names rows that the logits do not have", expected=f"0 to {rows - 1}", got=max(numbers)
        )
    starts = names["start"].tolist() if "start" in names.columns else [0.0] * len(numbers)
    ends = names["end"].tolist() if "end" in names.columns else [float("inf")] * len(numbers)
    found: dict[str, list[Entry]] = {}
    for name, row, start, end in zip(names["name"], numbers, starts, ends, strict=True):
        found.setdefault(clip_id(str(name)), []).append(Entry(int(row), float(start), float(end)))
    return found


def _refuse_pickle(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    if path.suffix.lower() in (".pkl", ".pickle") or (
        head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"
    ):
        convert = "import json, pickle, sys; json.dump(pickle.load(open(sys.argv[1], 'rb')), open(sys.argv[2], 'w'))"
        raise StoreError(
            f"{path} is a pickle, which can run code of whoever made it",
            expected=".csv, .json or .npz of the same names",
            run=f'where you trust the file: python -c "{convert}" {path.name} names.json',
        )


def _combined(*parts: str) -> str:
    return digest({"joined": list(parts)})


def _sigmoid(values: numpy.ndarray) -> numpy.ndarray:
    return 1 / (1 + numpy.exp(-values.astype(numpy.float64)))


def _as_logits(values: numpy.ndarray, activation: Activation) -> numpy.ndarray:
    """Return what a sigmoid, or a softmax up to a constant, was taken of."""
    if activation == "logits":
        return values.astype(numpy.float32)
    probability = values.astype(numpy.float64)
    outside = ~((probability >= 0) & (probability <= 1))
    probability = numpy.clip(probability, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    logits = numpy.log(probability)
    if activation == "sigmoid":
        logits = logits - numpy.log1p(-probability)
    logits[outside] = numpy.nan
    return logits.astype(numpy.float32)
