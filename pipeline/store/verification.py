"""Is the store what it says? Every byte is read and held against commit records, description and plan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import pandas

from pipeline import artifact
from pipeline.config import digest
from pipeline.errors import OssicleError, StoreError
from pipeline.store import tables, zarr_layout
from pipeline.store.commits import commit_name, derive_tables, finished_arrays, parse_commit
from pipeline.store.location import Location, Place, at
from pipeline.store.schema import (
    CLIPS_FILE,
    OK,
    REJECTED,
    REJECTS_FILE,
    ArraySpec,
    StoreMeta,
    keys_digest,
    output_digest,
    read_meta,
    rows_digest,
)
from pipeline.store.writer import StoreWriter


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a store.

    Attributes:
        code: short and stable: ``missing_shard``, ``truncated_shard``, ``damaged_shard``, ``not_committed``,
            ``damaged_commit``, ``moved_commit``, ``other_rows``, ``stale_digest``, ``wrong_form``,
            ``wrong_values``, ``wrong_status``, ``unreadable_table``, ``stray_file``, ``not_finished``.
        where: file or array, relative to the store.
        text: expected and got.
        shard: which one, where it is a shard's.
        array: the array's path, where it is an array's.
    """

    code: str
    where: str
    text: str
    shard: int | None = None
    array: str | None = None


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found."""

    problems: tuple[Problem, ...]
    shards: int
    files: int
    bytes: int

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(place: Place | Location) -> Verification:
    """Check every file of a store against its commit record, its description and the plan.

    Raises:
        MissingArtifactError: there is no store.
        StoreError: its description cannot be read.
    """
    location = at(place)
    meta = read_meta(location)
    problems: list[Problem] = []
    finished = finished_arrays(location)
    if not finished:
        problems.append(Problem("not_finished", artifact.MARKER, "the store is not finished"))
    rows = _read_table(location, CLIPS_FILE, problems)
    if rows is not None and (len(rows) != meta.rows or rows_digest(rows) != meta.rows_digest):
        problems.append(
            Problem("other_rows", CLIPS_FILE, f"expected plan {meta.rows_digest}, got {rows_digest(rows)}")
        )
    files = size = 0
    for spec in meta.arrays:
        decoders: dict[str, zarr_layout.ShardDecoder] = {}
        problems.extend(_check_array(location, spec, meta, decoders))
        names = [commit_name(spec, shard) for shard in range(meta.shards)]
        for shard, content in enumerate(location.read_many(names)):
            if content is not None or spec.path in finished:
                problems.extend(_check_shard(location, spec, meta, shard, content, rows, decoders))
        there = location.listing(spec.path)
        wanted = {name for shard in range(meta.shards) for name in zarr_layout.shard_files(spec, shard)}
        files += len(wanted & set(there))
        size += sum(there[name] for name in wanted & set(there))
        problems.extend(_stray_files(spec, wanted, there))
    if finished and rows is not None and not any(problem.code == "damaged_commit" for problem in problems):
        problems.extend(_check_tables(location, meta, rows, finished))
    return Verification(tuple(problems), meta.shards * len(meta.arrays), files, size)


def repair(place: Place | Location, found: Verification) -> list[tuple[str, int]]:
    """Discard every shard that ``found`` names, so that the next ``ossicle embed`` makes them anew.

    Returns:
        (array path, shard) of each shard discarded.

    Raises:
        StoreError: something is wrong that no shard's renewal can mend.
    """
    location = at(place)
    beyond = [
        problem for problem in found.problems if problem.shard is None and problem.code != "not_finished"
    ]
    beyond = [problem for problem in beyond if problem.code not in ("wrong_status", "stray_file")]
    if beyond:
        raise StoreError(
            f"{beyond[0].where}: {beyond[0].text}",
            expected="damage to shards alone",
            got=beyond[0].code,
            run=f"move {location} away and run ossicle embed again",
        )
    shards = sorted(
        {(p.array, p.shard) for p in found.problems if p.array is not None and p.shard is not None}
    )
    with StoreWriter.open(location) as writer:
        for path, shard in shards:
            writer.discard(writer.meta.find(path), shard)
    location.remove(artifact.MARKER)
    return shards


def _read_table(location: Location, name: str, problems: list[Problem]) -> pandas.DataFrame | None:
    try:
        return tables.load(location, name)
    except OssicleError as error:
        problems.append(Problem("unreadable_table", name, error.problem))
        return None


def _check_array(
    location: Location, spec: ArraySpec, meta: StoreMeta, decoders: dict[str, zarr_layout.ShardDecoder]
) -> Iterator[Problem]:
    """Yield what is wrong with an array's description; ``decoders`` gets what reads each member that can be."""
    if _digest_of(spec) != spec.digest:
        yield Problem(
            "stale_digest", "store.json", f"{spec.path}: its constants give another digest", array=spec.path
        )
    try:
        described = zarr_layout.read_attributes(location, spec)
        if described != zarr_layout.attributes(spec)["ossicle"]:
            yield Problem(
                "stale_digest",
                spec.path,
                f"expected digest {spec.digest}, got {described.get('digest')}",
                array=spec.path,
            )
        for name, (dtype, row_shape) in zarr_layout.members(spec).items():
            decoders[name] = zarr_layout.ShardDecoder(location.read(f"{spec.path}/{name}/zarr.json"))
            array = decoders[name].array
            form = (array.shape, str(array.dtype), array.chunks, array.shards)
            wanted = (
                (meta.rows, *row_shape),
                dtype,
                (meta.chunk_rows, *row_shape),
                (meta.shard_rows, *row_shape),
            )
            if form != wanted:
                yield Problem(
                    "wrong_form", f"{spec.path}/{name}", f"expected {wanted}, got {form}", array=spec.path
                )
    except (OSError, ValueError, KeyError) as error:
        yield Problem("wrong_form", spec.path, f"cannot be opened: {error}", array=spec.path)


def _digest_of(spec: ArraySpec) -> str:
    """Return the digest that the description's constants give; a teacher's own can only be taken as it is."""
    if spec.kind == "spectrogram":
        return digest({"frontend": "log_mel/1", **spec.config})
    return output_digest(
        spec.teacher_digest, spec.output, spec.config.get("frame_rate_hz"), spec.config.get("top_k")
    )


def _check_shard(
    location: Location,
    spec: ArraySpec,
    meta: StoreMeta,
    shard: int,
    commit: bytes | None,
    rows: pandas.DataFrame | None,
    decoders: dict[str, zarr_layout.ShardDecoder],
) -> Iterator[Problem]:
    where = commit_name(spec, shard)

    def problem(code: str, place: str, text: str) -> Problem:
        return Problem(code, place, text, shard, spec.path)

    if commit is None:
        yield problem("not_committed", where, "no commit record")
        return
    try:
        record = parse_commit(commit, location, spec, shard)
    except StoreError as error:
        yield problem("damaged_commit", where, error.problem)
        return
    start, stop = meta.bounds(shard)
    if record["array"] != spec.digest:
        yield problem("stale_digest", where, f"expected array {spec.digest}, got {record['array']}")
        return
    expected = set(zarr_layout.shard_files(spec, shard))
    if record["shard"] != shard or record["rows"] != [start, stop] or set(record["files"]) != expected:
        yield problem("moved_commit", where, f"belongs to shard {record['shard']}, rows {record['rows']}")
        return
    if rows is not None and record["keys"] != keys_digest(rows["key"].iloc[start:stop]):
        yield problem("other_rows", where, "its rows are not those of clips.parquet, or in another order")
    contents: dict[str, bytes] = {}
    for member in zarr_layout.members(spec):
        path = zarr_layout.shard_file(spec, member, shard)
        content, code, text = _check_file(location, path, **record["files"][path])
        if code:
            yield problem(code, path, text)
        contents[member] = content
    # Zarr's own checksums and the values: only a file that is what its record says gets that far.
    if all(contents.values()) and set(contents) <= set(decoders):
        yield from (
            problem("wrong_values", spec.path, text)
            for text in _check_values(spec, shard, record, contents, decoders)
        )


def _check_file(location: Location, path: str, bytes: int, sha256: str) -> tuple[bytes, str, str]:
    """Return the content (empty if it is wrong), and code and text of what is wrong."""
    try:
        content = location.read(path)
    except FileNotFoundError:
        return b"", "missing_shard", f"expected {bytes} bytes, got no file"
    if len(content) != bytes:
        return b"", "truncated_shard", f"expected {bytes} bytes, got {len(content)}"
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        return b"", "damaged_shard", f"expected SHA-256 {sha256}, got {found}"
    return content, "", ""


def _check_values(
    spec: ArraySpec,
    shard: int,
    record: dict[str, Any],
    contents: dict[str, bytes],
    decoders: dict[str, zarr_layout.ShardDecoder],
) -> Iterator[str]:
    start, stop = record["rows"]
    missing = numpy.zeros(stop - start, dtype=bool)
    lacking = [reject["row"] for reject in record["rejects"]] + record.get("missing", [])
    missing[numpy.array(lacking, dtype=numpy.int64) - start] = True
    members: dict[str, numpy.ndarray] = {}
    try:
        for name, content in contents.items():
            members[name] = decoders[name].decode(shard, start, stop, content)
    except (ValueError, RuntimeError, OSError) as error:
        yield f"shard {shard} cannot be decoded: {error}"
        return
    for name, values in members.items():
        if values.dtype.kind != "f":
            continue  # codes and classes are judged by what they belong to
        finite = numpy.isfinite(values).reshape(len(values), -1)
        if not finite[~missing].all():
            yield f"shard {shard} has a non-finite row of {name} that was not rejected"
        if finite[missing].any():
            yield f"shard {shard} has values of {name} in a missing row"
    if spec.top_k is not None:
        yield from _check_classes(spec, shard, members["indices"][~missing])


def _check_classes(spec: ArraySpec, shard: int, indices: numpy.ndarray) -> Iterator[str]:
    ordered = numpy.sort(indices, axis=1)
    if (indices < 0).any() or (indices >= spec.row_shape[0]).any() or (numpy.diff(ordered) == 0).any():
        yield f"shard {shard} names a class twice, or one that is not 0 to {spec.row_shape[0] - 1}"


def _stray_files(spec: ArraySpec, wanted: set[str], there: dict[str, int]) -> Iterator[Problem]:
    folders = tuple(f"{spec.path}/{name}/c/" for name in zarr_layout.members(spec))
    for name in sorted(there):
        if name.startswith(folders) and name not in wanted:
            yield Problem("stray_file", name, "no shard of this array", array=spec.path)


def _check_tables(
    location: Location, meta: StoreMeta, rows: pandas.DataFrame, finished: list[str]
) -> Iterator[Problem]:
    if not set(rows["status"]) <= {OK, REJECTED}:
        yield Problem(
            "wrong_status", CLIPS_FILE, f"expected ok or rejected, got {sorted(set(rows['status']))}"
        )
        return
    found: list[Problem] = []
    earlier = _read_table(location, REJECTS_FILE, found)
    yield from found
    if earlier is None:
        return
    specs = [spec for spec in meta.arrays if spec.path in finished]
    clips, rejects = derive_tables(location, meta, specs, rows, earlier)
    if not clips["status"].equals(rows["status"]):
        different = int((clips["status"] != rows["status"]).sum())
        yield Problem(
            "wrong_status", CLIPS_FILE, f"{different} rows have another status than the commit records give"
        )
    if tables.to_bytes(rejects) != tables.to_bytes(earlier):
        yield Problem("wrong_status", REJECTS_FILE, "it does not list what the commit records rejected")
