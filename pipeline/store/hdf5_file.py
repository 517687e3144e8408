"""A whole store as one HDF5 file, and back, byte for byte.

::

    format        "ossicle-store/1"                                    uint8 text, like every file below
    files         content of store.json, clips.parquet, rejects.parquet, artifact.json    files.<name>
    <kind>.<digest12>.<member>       (rows, ...) as stored: h5py and MATLAB read it without Ossicle
    <kind>.<digest12>.commits        the commit records, one JSON line a shard

Everything lies in the root group, so that each dataset can be looked at before it is read. Shards are encoded
again on import and must give the SHA-256 of their commit record: a file that was tampered with, or cut, or
written by another version of the format, is refused.
"""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet

from pipeline import artifact, hdf5_guard
from pipeline.artifact import replacing
from pipeline.errors import Hdf5Error, MissingDependencyError, StoreError
from pipeline.store import tables, verification, zarr_layout
from pipeline.store.commits import KEYS, commit_name, described_files, read_marker, record_bytes
from pipeline.store.location import Location, Place, at
from pipeline.store.reader import StoreReader
from pipeline.store.schema import (
    CLIPS_FILE,
    REJECTS_FILE,
    STORE_FILE,
    ArraySpec,
    StoreMeta,
    parse_meta,
    rows_digest,
)

FORMAT = "ossicle-store/1"
FILES = (STORE_FILE, CLIPS_FILE, REJECTS_FILE, artifact.MARKER)
CHUNK_BYTES = 16 << 20
MAX_FILE_BYTES = 4 << 30
MAX_TABLE_BYTES = 16 << 30
MAX_SHARD_BYTES = 4 << 30


def export_hdf5(place: Place | Location, path: Path) -> int:
    """Write the finished store at ``place`` to ``path``, a shard at a time; return the file's bytes.

    Raises:
        MissingArtifactError: no finished store there.
        StoreError: a shard is not what its commit record says.
        MissingDependencyError: h5py is not installed.
    """
    h5py = _h5py()
    if path.exists():
        raise StoreError(f"{path} is there already", expected="a new file", got="a folder or file")
    reader = StoreReader(place)
    complete = set(reader.artifact.summary["arrays"])
    if set(complete) != {spec.path for spec in reader.meta.arrays}:
        unfinished = sorted({spec.path for spec in reader.meta.arrays} - complete)
        raise StoreError(
            f"{reader.location} holds arrays that were not finished",
            got=", ".join(unfinished),
            run="ossicle embed, with the recipe that began them",
        )
    with replacing(path) as temporary, h5py.File(temporary, "w", libver="latest") as file:
        _write_text(file, "format", FORMAT.encode())
        for name in FILES:
            _write_text(file, f"files.{name}", reader.location.read(name))
        for spec in reader.meta.arrays:
            _export_array(file, reader, spec)
    return path.stat().st_size


def _export_array(file: Any, reader: StoreReader, spec: ArraySpec) -> None:
    meta = reader.meta
    datasets = {
        member: file.create_dataset(
            _dataset_name(spec, member),
            shape=(meta.rows, *row_shape),
            dtype=dtype,
            chunks=(_chunk_rows(meta, numpy.dtype(dtype).itemsize * math.prod(row_shape)), *row_shape),
            fletcher32=True,
        )
        for member, (dtype, row_shape) in zarr_layout.members(spec).items()
    }
    records = []
    for shard in range(meta.shards):
        start, stop = meta.bounds(shard)
        members, record = reader.read_checked(spec, shard)
        for member, values in members.items():
            datasets[member][start:stop] = values
        records.append(json.dumps(record, sort_keys=True))
    _write_text(file, _dataset_name(spec, "commits"), "\n".join(records).encode())


def _chunk_rows(meta: StoreMeta, row_bytes: int) -> int:
    return max(1, min(meta.chunk_rows, meta.rows, CHUNK_BYTES // row_bytes))


def import_hdf5(path: Path, place: Place | Location) -> artifact.Artifact:
    """Make the store of an HDF5 file at ``place``, which must be empty; return its marker.

    Headers are looked at before anything is read: shapes must be those of the store's description, every row
    must really be in the file, nothing may lie in other files. Shards pass through memory one at a time.

    Raises:
        Hdf5Error: it is no such file, or claims what it does not hold.
        StoreError: its content is not what its commit records say, or something is at ``place`` already.
    """
    location = at(place)
    if location.listing(""):
        raise StoreError(f"{location} is not empty", expected="a new folder or URL", got="files")
    with hdf5_guard.opened(path) as file:
        if _read_text(file, "format", 64) != FORMAT.encode():
            raise Hdf5Error(f"{path} is no store", expected=FORMAT)
        contents = {name: _read_text(file, f"files.{name}", MAX_FILE_BYTES) for name in FILES}
        meta = parse_meta(contents[STORE_FILE], str(path))
        _check_sizes(path, meta, contents)
        _check_rows(path, meta, contents[CLIPS_FILE])
        datasets = {spec.path: _checked(file, spec, meta) for spec in meta.arrays}
        records = {spec.path: _records(file, spec, meta, path) for spec in meta.arrays}
        for spec in meta.arrays:
            files = zarr_layout.group_files(spec, meta)
            for name, content in files.items():
                location.write(f"{spec.path}/{name}", content)
            encoders = {
                member: zarr_layout.ShardEncoder(files[f"{member}/zarr.json"])
                for member in zarr_layout.members(spec)
            }
            for shard, record in enumerate(records[spec.path]):
                start, stop = meta.bounds(shard)
                shard_files = {
                    zarr_layout.shard_file(spec, member, shard): encoders[member].encode(
                        shard, start, _rows_of(dataset, start, stop)
                    )
                    for member, dataset in datasets[spec.path].items()
                }
                found = described_files(shard_files)
                if found != record["files"]:
                    raise StoreError(
                        f"{path}: shard {shard} of {spec.path} was changed after it was written, or damaged",
                        expected=record["files"],
                        got=found,
                        run=f"get the file again; what is in {location} can be deleted",
                    )
                for name, content in shard_files.items():
                    location.write(name, content)
                location.write(commit_name(spec, shard), record_bytes(record))
    # The marker last: without it the folder is no store. Then all of it is read once more.
    for name in FILES:
        location.write(name, contents[name])
    problems = verification.verify(location).problems
    if problems:
        location.remove(artifact.MARKER)
        raise StoreError(
            f"{path} holds a store that is not sound: {problems[0].where}: {problems[0].text}",
            got=", ".join(sorted({problem.code for problem in problems})),
            run=f"get the file again; what is in {location} can be deleted",
        )
    return read_marker(location)


def _h5py() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise MissingDependencyError("HDF5 files need h5py", run="pip install 'ossicle[hdf5]'") from error


def _dataset_name(spec: ArraySpec, member: str) -> str:
    return f"{spec.kind}.{spec.digest[:12]}.{member}"


def _write_text(file: Any, name: str, content: bytes) -> None:
    file.create_dataset(name, data=numpy.frombuffer(content, dtype=numpy.uint8))


def _read_text(file: Any, name: str, limit: int) -> bytes:
    dataset = hdf5_guard.checked_dataset(file, name, kinds="u", rank=1, max_item_bytes=1)
    if dataset.shape[0] > limit:
        raise Hdf5Error(f"{file.filename}: {name} is too large", expected=limit, got=dataset.shape[0])
    return bytes(_rows_of(dataset, 0, dataset.shape[0]).tobytes())


def _rows_of(dataset: Any, start: int, stop: int) -> numpy.ndarray:
    try:
        return numpy.asarray(dataset[start:stop])
    except hdf5_guard.READING as error:
        raise Hdf5Error(f"{dataset.file.filename}: {dataset.name} cannot be read", got=error) from error


def _check_sizes(path: Path, meta: StoreMeta, contents: dict[str, bytes]) -> None:
    """Refuse a description whose shards or tables would not fit into memory, before any of it is made."""
    for spec in meta.arrays:
        shard = spec.row_bytes * min(meta.shard_rows, meta.rows)
        if shard > MAX_SHARD_BYTES:
            raise Hdf5Error(
                f"{path}: a shard of {spec.path} would be {shard} bytes",
                expected=f"at most {MAX_SHARD_BYTES}",
            )
    if len({spec.path for spec in meta.arrays}) < len(meta.arrays):
        raise Hdf5Error(f"{path}: two arrays have one name")
    for name in (CLIPS_FILE, REJECTS_FILE):
        try:
            metadata = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(contents[name])).metadata
        except (pyarrow.ArrowException, OSError) as error:
            raise Hdf5Error(f"{path}: {name} is no table", got=error) from error
        size = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
        if size > MAX_TABLE_BYTES or metadata.num_rows > hdf5_guard.MAX_ROWS:
            raise Hdf5Error(
                f"{path}: {name} would unpack to {size} bytes, {metadata.num_rows} rows",
                expected=f"at most {MAX_TABLE_BYTES} bytes",
            )


def _check_rows(path: Path, meta: StoreMeta, content: bytes) -> None:
    rows = tables.parse(content, f"{path}: {CLIPS_FILE}")
    if "key" not in rows.columns or "status" not in rows.columns or len(rows) != meta.rows:
        raise StoreError(f"{path}: {CLIPS_FILE} is no plan of {meta.rows} rows", got=f"{len(rows)} rows")
    found = rows_digest(rows)
    if found != meta.rows_digest:
        raise StoreError(
            f"{path}: {CLIPS_FILE} is not the plan of this store", expected=meta.rows_digest, got=found
        )


def _checked(file: Any, spec: ArraySpec, meta: StoreMeta) -> dict[str, Any]:
    found = {}
    for member, (dtype, row_shape) in zarr_layout.members(spec).items():
        kind = numpy.dtype(dtype)
        name = _dataset_name(spec, member)
        dataset = hdf5_guard.checked_dataset(
            file, name, kinds=kind.kind, rank=1 + len(row_shape), max_item_bytes=kind.itemsize
        )
        wanted = (meta.rows, *row_shape)
        if dataset.shape != wanted or dataset.dtype != kind:
            raise Hdf5Error(
                f"{file.filename}: {name} is not what store.json describes",
                expected=f"{kind} {wanted}",
                got=f"{dataset.dtype} {dataset.shape}",
            )
        # Chunks that were never written would read as zeros, and none of an export's are packed.
        if dataset.id.get_storage_size() < kind.itemsize * numpy.prod(wanted, dtype=numpy.int64):
            raise Hdf5Error(
                f"{file.filename}: {name} holds less than it claims",
                expected=f"{kind.itemsize * numpy.prod(wanted, dtype=numpy.int64)} bytes",
                got=f"{dataset.id.get_storage_size()} bytes",
            )
        found[member] = dataset
    return found


def _records(file: Any, spec: ArraySpec, meta: StoreMeta, path: Path) -> list[dict[str, Any]]:
    lines = (
        _read_text(file, _dataset_name(spec, "commits"), MAX_FILE_BYTES)
        .decode("utf-8", "replace")
        .split("\n")
    )
    if len(lines) != meta.shards:
        raise StoreError(f"{path}: {spec.path} needs {meta.shards} commit records", got=len(lines))
    records = []
    for shard, line in enumerate(lines):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path}: commit record {shard} of {spec.path} is damaged", got=error) from error
        if not isinstance(record, dict) or not set(record) >= KEYS:
            raise StoreError(f"{path}: commit record {shard} of {spec.path} is none")
        records.append(record)
    return records
