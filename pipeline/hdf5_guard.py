"""HDF5 files of strangers: what a dataset claims is checked before any of it is read.

HDF5 lets a small file point into other files (external links, virtual datasets, external storage), claim any
shape without holding a byte of it, and unpack to a thousand times its size. Every dataset that this project
reads goes through ``checked_dataset``, which refuses all of that by looking at headers alone.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import Hdf5Error, MissingDependencyError

if TYPE_CHECKING:
    import h5py

MAX_CHUNK_BYTES = 64 << 20  # HDF5 unpacks a whole chunk to read one row of it
MAX_RATIO = 200  # deflate reaches 1,030 on zeros; sound does not reach 10, one-hot targets not 100
FREE_BYTES = 8 << 20  # below this a dataset's size harms nobody, whatever its ratio
MAX_ROWS = 1 << 28
FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
READING = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError)  # what h5py raises


def opened(path: Path) -> h5py.File:
    """Open ``path`` read-only.

    Raises:
        Hdf5Error: it is no regular file, or no HDF5.
        MissingDependencyError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError("HDF5 files need h5py", run="pip install 'ossicle[hdf5]'") from error
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise Hdf5Error(f"{path} cannot be read", expected="an HDF5 file", got=error) from error
    if not stat.S_ISREG(mode):
        raise Hdf5Error(f"{path} is no regular file", expected="an HDF5 file")
    if not os.access(path, os.R_OK):
        raise Hdf5Error(f"{path}: the system does not let it be read")
    try:
        return h5py.File(path, "r", locking="best-effort")
    except READING as error:
        raise Hdf5Error(f"{path} is no whole HDF5 file", got=_one_line(error)) from error


def has(file: h5py.File, name: str) -> bool:
    """Whether the root of ``file`` names ``name``, be it a dataset or not; no link is followed.

    Raises:
        Hdf5Error: the root is damaged.
    """
    try:
        return bool(file.id.links.exists(name.encode()))
    except READING as error:
        raise Hdf5Error(f"{file.filename} is damaged", got=_one_line(error)) from error


def rows_of(dataset: h5py.Dataset, rows: slice | int) -> np.ndarray:
    """Return rows of a checked dataset.

    Raises:
        Hdf5Error: they cannot be read.
    """
    where = "an HDF5 file that was closed"
    try:
        where = f"{dataset.file.filename}: {dataset.name}"
        return np.asarray(dataset[rows])
    except READING as error:
        raise Hdf5Error(f"{where} cannot be read", got=_one_line(error)) from error


def checked_dataset(
    file: h5py.File,
    name: str,
    *,
    kinds: str,
    rank: int,
    variable: bool = False,
    max_item_bytes: int = 8,
) -> h5py.Dataset:
    """Return the dataset ``name`` of the root, looked at and found harmless; nothing of it was read.

    Args:
        file: opened by ``opened``.
        name: in the root group.
        kinds: allowed ``numpy.dtype.kind`` letters (``"i"``, ``"ub"``, ``"S"``).
        rank: number of dimensions.
        variable: rows are variable-length lists of ``kinds`` instead of values.
        max_item_bytes: largest value.

    Raises:
        Hdf5Error: it is absent, a link, another type or rank; it is kept in other files; it claims more than
            the file can hold, was never written, or unpacks to more than ``MAX_RATIO`` times its size.
    """
    where = f"{file.filename}: {name}"
    try:
        dataset = _own_dataset(file, name, where)
        _check_type(dataset, kinds, rank, variable, max_item_bytes, where)
        _check_storage(dataset, Path(file.filename).stat().st_size, variable, where)
    except READING as error:
        if isinstance(error, Hdf5Error):
            raise
        raise Hdf5Error(f"{where} is damaged", got=_one_line(error)) from error
    return dataset


def integer_attribute(file: h5py.File, name: str) -> int:
    """Return the root's scalar integer attribute ``name``.

    Raises:
        Hdf5Error: it is absent or no single integer.
    """
    where = f"{file.filename}: attribute {name}"
    try:
        if name not in file.attrs:
            raise Hdf5Error(f"{where} is missing", expected="an integer")
        kind = file.attrs.get_id(name)
        if kind.dtype.kind not in "iu" or kind.shape not in ((), (1,)):
            raise Hdf5Error(f"{where} is no integer", expected="an integer", got=f"{kind.dtype} {kind.shape}")
        return int(file.attrs[name].reshape(-1)[0]) if kind.shape else int(file.attrs[name])
    except READING as error:
        if isinstance(error, Hdf5Error):
            raise
        raise Hdf5Error(f"{where} is damaged", got=_one_line(error)) from error


def variable_bytes(dataset: h5py.Dataset, row: int) -> int:
    """Return how many bytes variable-length ``row`` claims, from its 16-byte reference: no heap is read.

    HDF5 makes room for that many before it looks for them, so a reader asks here first.

    Raises:
        Hdf5Error: the reference lies outside the file.
    """
    where = f"{dataset.file.filename}: {dataset.name}"
    identifier = dataset.id
    if dataset.file.userblock_size:
        raise Hdf5Error(f"{where}: the file begins with a user block", expected="a file without one")
    # On disk a reference is a 4-byte length, an address of the file's width and a 4-byte index.
    address_bytes = dataset.file.id.get_create_plist().get_sizes()[0]
    width = 8 + address_bytes
    if dataset.chunks is None:
        first = identifier.get_offset()
        position = None if first is None else first + row * width
    else:
        rows = dataset.chunks[0]
        info = identifier.get_chunk_info_by_coord((row // rows * rows,))
        position = None if info.byte_offset is None else info.byte_offset + row % rows * width
    if position is None:
        return 0
    with Path(dataset.file.filename).open("rb", buffering=0) as raw:
        raw.seek(position)
        reference = raw.read(width)
        end = raw.seek(0, os.SEEK_END)
    if len(reference) < width:
        raise Hdf5Error(f"{where} row {row} lies outside the file")
    length = int.from_bytes(reference[:4], "little")
    address = int.from_bytes(reference[4 : 4 + address_bytes], "little")
    if length and address >= end:
        raise Hdf5Error(f"{where} row {row} points outside the file", got=f"byte {address} of {end}")
    return length


def _own_dataset(file: h5py.File, name: str, where: str) -> h5py.Dataset:
    import h5py

    if not has(file, name):
        raise Hdf5Error(f"{where} is missing", got=", ".join(sorted(file.keys())[:8]) or "an empty file")
    link = file.id.links.get_info(name.encode()).type
    if link != h5py.h5l.TYPE_HARD:
        kind = "an external link" if link == h5py.h5l.TYPE_EXTERNAL else "a soft link"
        raise Hdf5Error(f"{where} is {kind}", expected="a dataset of the file's own")
    if h5py.h5o.get_info(file.id, name.encode()).type != h5py.h5o.TYPE_DATASET:
        raise Hdf5Error(f"{where} is no dataset")
    return h5py.Dataset(h5py.h5d.open(file.id, name.encode()))


def _check_type(
    dataset: h5py.Dataset, kinds: str, rank: int, variable: bool, max_item_bytes: int, where: str
) -> None:
    import h5py

    dtype = dataset.dtype
    base = h5py.check_vlen_dtype(dtype)
    expected = f"{'variable-length ' if variable else ''}kind {' or '.join(kinds)}"
    if variable:
        element = None if base is None or base is str or base is bytes else base
        if element is None or element.kind not in kinds or element.itemsize > max_item_bytes:
            raise Hdf5Error(f"{where} has the wrong type", expected=expected, got=base or dtype)
    elif base is not None or dtype.kind not in kinds or not 0 < dtype.itemsize <= max_item_bytes:
        raise Hdf5Error(f"{where} has the wrong type", expected=expected, got=base or dtype)
    shape = dataset.shape
    if shape is None or len(shape) != rank:
        raise Hdf5Error(f"{where} has the wrong shape", expected=f"{rank} dimensions", got=shape)
    if shape[0] > MAX_ROWS:
        raise Hdf5Error(f"{where} claims {shape[0]} rows", expected=f"at most {MAX_ROWS}")


def _check_storage(dataset: h5py.Dataset, file_bytes: int, variable: bool, where: str) -> None:
    import h5py

    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        raise Hdf5Error(f"{where} is virtual: its data are in other files", expected="data of its own")
    if plist.get_external_count():
        raise Hdf5Error(f"{where} is stored in external files", expected="data of its own")
    codes = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    unknown = [str(code) for code in codes if code not in FILTERS]
    if unknown:
        known = ", ".join(FILTERS.values())
        raise Hdf5Error(
            f"{where} was packed by an unknown filter", expected=known, got=f"filter {', '.join(unknown)}"
        )
    if variable and codes:
        raise Hdf5Error(
            f"{where} packs the references of its variable-length rows", expected="no filter on it"
        )
    # A variable-length value is 16 bytes here, its reference; what it points to is checked when it is read.
    claimed = _product(dataset.shape) * (16 if variable else dataset.dtype.itemsize)
    if dataset.chunks is not None:
        chunk = _product(dataset.chunks) * dataset.dtype.itemsize
        if chunk > MAX_CHUNK_BYTES:
            raise Hdf5Error(f"{where} has chunks of {chunk} bytes", expected=f"at most {MAX_CHUNK_BYTES}")
    stored = dataset.id.get_storage_size()
    if stored > file_bytes:
        raise Hdf5Error(f"{where} claims {stored} bytes", expected=f"at most the file's {file_bytes}")
    if claimed and not stored:
        raise Hdf5Error(f"{where} claims {claimed} bytes and none was ever written")
    if plist.get_layout() == h5py.h5d.CONTIGUOUS and not variable and stored < claimed:
        raise Hdf5Error(f"{where} claims {claimed} bytes and holds {stored}")
    if claimed > max(FREE_BYTES, MAX_RATIO * stored):
        raise Hdf5Error(
            f"{where} would unpack to {claimed} bytes from {stored}",
            expected=f"at most {MAX_RATIO} times as many",
        )


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= int(length)
    return product


def _one_line(error: Any) -> str:
    return " ".join(str(error).split())[:200]
