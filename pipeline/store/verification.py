"""Is the store what it says? Every byte is read and held against commit records, description and plan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pandas
import zarr

from pipeline import artifact
from pipeline.config import digest
from pipeline.errors import OssicleError, StoreError
from pipeline.store import tables, zarr_layout
from pipeline.store.schema import (
    CLIPS_FILE,
    OK,
    REJECTED,
    REJECTS_FILE,
    ArraySpec,
    StoreMeta,
    keys_digest,
    read_meta,
    rows_digest,
)
from pipeline.store.writer import StoreWriter, commit_path, derive_tables, finished_arrays, read_commit


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


def verify(folder: Path) -> Verification:
    """Check every file of a store against its commit record, its description and the plan.

    Raises:
        MissingArtifactError: there is no store.
        StoreError: its description cannot be read.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    problems: list[Problem] = []
    finished = finished_arrays(folder)
    if not finished:
        problems.append(Problem("not_finished", artifact.MARKER, "the store is not finished"))
    rows = _read_table(folder, CLIPS_FILE, problems)
    if rows is not None and (len(rows) != meta.rows or rows_digest(rows) != meta.rows_digest):
        problems.append(
            Problem("other_rows", CLIPS_FILE, f"expected plan {meta.rows_digest}, got {rows_digest(rows)}")
        )
    files = size = 0
    for spec in meta.arrays:
        problems.extend(_check_array(folder, spec, meta))
        for shard in range(meta.shards):
            if spec.path in finished or commit_path(folder, spec, shard).exists():
                problems.extend(_check_shard(folder, spec, meta, shard, rows))
            for name in zarr_layout.members(spec):
                file = folder / zarr_layout.shard_file(spec, name, shard)
                files += file.is_file()
                size += file.stat().st_size if file.is_file() else 0
        problems.extend(_stray_files(folder, spec, meta))
    if finished and rows is not None and not any(problem.code == "damaged_commit" for problem in problems):
        problems.extend(_check_tables(folder, meta, rows, finished))
    return Verification(tuple(problems), meta.shards * len(meta.arrays), files, size)


def repair(folder: Path, found: Verification) -> list[tuple[str, int]]:
    """Discard every shard that ``found`` names, so that the next ``ossicle embed`` makes them anew.

    Returns:
        (array path, shard) of each shard discarded.

    Raises:
        StoreError: something is wrong that no shard's renewal can mend.
    """
    beyond = [
        problem for problem in found.problems if problem.shard is None and problem.code != "not_finished"
    ]
    beyond = [problem for problem in beyond if problem.code not in ("wrong_status", "stray_file")]
    if beyond:
        raise StoreError(
            f"{beyond[0].where}: {beyond[0].text}",
            expected="damage to shards alone",
            got=beyond[0].code,
            run=f"move {folder} away and run ossicle embed again",
        )
    shards = sorted(
        {(p.array, p.shard) for p in found.problems if p.array is not None and p.shard is not None}
    )
    with StoreWriter.open(folder) as writer:
        for path, shard in shards:
            writer.discard(writer.meta.find(path), shard)
    (Path(folder) / artifact.MARKER).unlink(missing_ok=True)
    return shards


def _read_table(folder: Path, name: str, problems: list[Problem]) -> pandas.DataFrame | None:
    try:
        return tables.read(folder / name)
    except OssicleError as error:
        problems.append(Problem("unreadable_table", name, error.problem))
        return None


def _check_array(folder: Path, spec: ArraySpec, meta: StoreMeta) -> Iterator[Problem]:
    if spec.kind == "spectrogram" and digest({"frontend": "log_mel/1", **spec.config}) != spec.digest:
        yield Problem(
            "stale_digest", "store.json", f"{spec.path}: its constants give another digest", array=spec.path
        )
    try:
        group = zarr.open_group(folder / spec.path, mode="r", zarr_format=3)
        described: Any = group.attrs.asdict().get("ossicle", {})
        if described != zarr_layout.attributes(spec)["ossicle"]:
            yield Problem(
                "stale_digest",
                spec.path,
                f"expected digest {spec.digest}, got {described.get('digest')}",
                array=spec.path,
            )
        for name, (dtype, row_shape) in zarr_layout.members(spec).items():
            array = zarr_layout.open_array(folder / spec.path / name)
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


def _check_shard(
    folder: Path, spec: ArraySpec, meta: StoreMeta, shard: int, rows: pandas.DataFrame | None
) -> Iterator[Problem]:
    where = str(commit_path(folder, spec, shard).relative_to(folder))

    def problem(code: str, place: str, text: str) -> Problem:
        return Problem(code, place, text, shard, spec.path)

    try:
        record = read_commit(folder, spec, shard)
    except StoreError as error:
        yield problem("damaged_commit", where, error.problem)
        return
    if record is None:
        yield problem("not_committed", where, "no commit record")
        return
    start, stop = meta.bounds(shard)
    if record["array"] != spec.digest:
        yield problem("stale_digest", where, f"expected array {spec.digest}, got {record['array']}")
        return
    expected = {zarr_layout.shard_file(spec, name, shard) for name in zarr_layout.members(spec)}
    if record["shard"] != shard or record["rows"] != [start, stop] or set(record["files"]) != expected:
        yield problem("moved_commit", where, f"belongs to shard {record['shard']}, rows {record['rows']}")
        return
    if rows is not None and record["keys"] != keys_digest(rows["key"].iloc[start:stop]):
        yield problem("other_rows", where, "its rows are not those of clips.parquet, or in another order")
    sound = True
    for path, file in record["files"].items():
        code, text = _check_file(folder / path, file["bytes"], file["sha256"])
        if code:
            sound = False
            yield problem(code, path, text)
    if sound:
        yield from (
            problem("wrong_values", spec.path, text) for text in _check_values(folder, spec, shard, record)
        )


def _check_file(path: Path, size: int, sha256: str) -> tuple[str, str]:
    if not path.is_file():
        return "missing_shard", f"expected {size} bytes, got no file"
    content = path.read_bytes()
    if len(content) != size:
        return "truncated_shard", f"expected {size} bytes, got {len(content)}"
    found = hashlib.sha256(content).hexdigest()
    return ("", "") if found == sha256 else ("damaged_shard", f"expected SHA-256 {sha256}, got {found}")


def _check_values(folder: Path, spec: ArraySpec, shard: int, record: dict[str, Any]) -> Iterator[str]:
    start, stop = record["rows"]
    rejected = numpy.zeros(stop - start, dtype=bool)
    rejected[[reject["row"] - start for reject in record["rejects"]]] = True
    name = {"uint8": "scale"}.get(spec.dtype, "tail" if spec.top_k is not None else spec.data_name)
    try:
        values = numpy.asarray(zarr_layout.open_array(folder / spec.path / name)[start:stop])
    except (ValueError, RuntimeError, OSError) as error:
        yield f"shard {shard} cannot be decoded: {error}"
        return
    finite = numpy.isfinite(values).reshape(len(values), -1)
    if not finite[~rejected].all():
        yield f"shard {shard} has a non-finite row that was not rejected"
    if finite[rejected].any():
        yield f"shard {shard} has values in a rejected row"


def _stray_files(folder: Path, spec: ArraySpec, meta: StoreMeta) -> Iterator[Problem]:
    expected = {
        folder / zarr_layout.shard_file(spec, name, shard)
        for name in zarr_layout.members(spec)
        for shard in range(meta.shards)
    }
    for name in zarr_layout.members(spec):
        for file in (folder / spec.path / name / "c").rglob("*"):
            if file.is_file() and file not in expected:
                yield Problem(
                    "stray_file", str(file.relative_to(folder)), "no shard of this array", array=spec.path
                )


def _check_tables(
    folder: Path, meta: StoreMeta, rows: pandas.DataFrame, finished: list[str]
) -> Iterator[Problem]:
    if not set(rows["status"]) <= {OK, REJECTED}:
        yield Problem(
            "wrong_status", CLIPS_FILE, f"expected ok or rejected, got {sorted(set(rows['status']))}"
        )
        return
    found: list[Problem] = []
    earlier = _read_table(folder, REJECTS_FILE, found)
    yield from found
    if earlier is None:
        return
    specs = [spec for spec in meta.arrays if spec.path in finished]
    clips, rejects = derive_tables(folder, meta, specs, rows, earlier)
    if not clips["status"].equals(rows["status"]):
        different = int((clips["status"] != rows["status"]).sum())
        yield Problem(
            "wrong_status", CLIPS_FILE, f"{different} rows have another status than the commit records give"
        )
    if tables.to_bytes(rejects) != tables.to_bytes(earlier):
        yield Problem("wrong_status", REJECTS_FILE, "it does not list what the commit records rejected")
