"""Several stores made one: shards of one plan from several machines, or stores of several corpora end to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import pandas

from pipeline import artifact
from pipeline.config import digest
from pipeline.errors import DigestMismatchError, StoreError
from pipeline.store import tables, zarr_layout
from pipeline.store.commits import (
    finished_arrays,
    is_finished,
    read_commits,
    read_marker,
)
from pipeline.store.location import Location, Place, at
from pipeline.store.reader import StoreReader
from pipeline.store.schema import (
    CLIPS_FILE,
    NO_ROW,
    REJECTS_FILE,
    ArraySpec,
    StoreMeta,
    read_meta,
)
from pipeline.store.writer import StoreWriter


@dataclass(frozen=True)
class Merged:
    """What became of a merge.

    Attributes:
        how: ``shards`` of one plan, or ``concatenated`` plans.
        rows: of the merged store.
        copied: shards written, over all arrays.
        dropped: rows left out because an earlier store holds the same content under the same key.
        pending: shards that no store had; 0 = the merged store is finished.
        finished: its marker, None where shards are pending.
    """

    how: str
    rows: int
    copied: int
    dropped: int
    pending: int
    finished: artifact.Artifact | None


def merge(places: Sequence[Place | Location], out: Place | Location) -> Merged:
    """Merge stores into a new one at ``out``; run again it goes on where it was interrupted.

    Stores of one plan (the same rows in the same order) may each hold some shards and some arrays: every shard
    is copied with its commit record, its checksum held against it. Stores of different plans must be finished
    and hold the same arrays; their rows are laid end to end.

    Raises:
        StoreError: fewer than two stores; the same shard with other content; plans of other shard sizes; a
            row that one store trains on and another validates on.
        DigestMismatchError: stores of different plans whose frontends or teachers differ.
        MissingArtifactError: no store there, or one of different plans that is not finished.
    """
    sources = [at(place) for place in places]
    if len(sources) < 2:
        raise StoreError("one store alone cannot be merged", expected="two stores or more", got=len(sources))
    target = at(out)
    if str(target) in {str(source) for source in sources}:
        raise StoreError("a merge needs a place of its own", expected="a new folder or URL", got=str(target))
    metas = [read_meta(source) for source in sources]
    if len({(meta.rows_digest, meta.manifest_digest) for meta in metas}) == 1:
        return _merge_shards(sources, metas, target)
    return _concatenate(sources, metas, target)


def _merge_shards(sources: list[Location], metas: list[StoreMeta], target: Location) -> Merged:
    arrays: dict[str, ArraySpec] = {}
    for source, meta in zip(sources, metas, strict=True):
        _check_layout(source, meta, metas[0])
        for spec in meta.arrays:
            _check_same(source, spec, arrays.setdefault(spec.path, spec))
    _refuse_conflicts(sources, metas)
    asked = {key: value for meta in metas for key, value in meta.asked.items()}
    meta = metas[0].model_copy(update={"arrays": tuple(arrays.values()), "asked": asked})
    rows = tables.load(sources[0], CLIPS_FILE)
    earlier = pandas.concat([tables.load(source, REJECTS_FILE) for source in sources], ignore_index=True)
    copied = 0
    lost = tables.merge_rejects(earlier[earlier["row"] == NO_ROW], None)
    with StoreWriter.create(target, rows, meta, lost) as writer:
        for source, own in zip(sources, metas, strict=True):
            for spec in own.arrays:
                copied += _copy_array(source, spec, writer)
        pending = sum(len(writer.pending([spec.digest])) for spec in meta.arrays)
        finished = None
        if not pending:
            config, inputs, summary = _identity(sources, meta)
            finished = writer.finish(config=config, inputs=inputs, summary=summary)
    return Merged("shards", len(rows), copied, 0, pending, finished)


def _copy_array(source: Location, spec: ArraySpec, writer: StoreWriter) -> int:
    copied = 0
    for shard, record in enumerate(read_commits(source, spec, range(writer.meta.shards))):
        if record is None or writer.is_committed(spec, shard):
            continue
        names = zarr_layout.shard_files(spec, shard)
        contents = dict(zip(names, source.read_many(names), strict=True))
        lacking = [name for name, content in contents.items() if content is None]
        if lacking:
            raise StoreError(
                f"{source}/{lacking[0]} is missing",
                run=f"ossicle store verify {source} --repair, then ossicle embed there",
            )
        found = {name: content for name, content in contents.items() if content is not None}
        writer.copy_shard(spec, shard, record, found)
        copied += 1
    return copied


def _refuse_conflicts(sources: list[Location], metas: list[StoreMeta]) -> None:
    """Refuse two stores that hold the same shard with other content: nobody can say which is right."""
    seen: dict[tuple[str, int], tuple[Location, Any]] = {}
    for source, meta in zip(sources, metas, strict=True):
        for spec in meta.arrays:
            for shard, record in enumerate(read_commits(source, spec, range(meta.shards))):
                if record is None:
                    continue
                first, files = seen.setdefault((spec.path, shard), (source, record["files"]))
                if files != record["files"]:
                    raise StoreError(
                        f"shard {shard} of {spec.path} differs between two stores",
                        expected=f"{first}: {_checksums(files)}",
                        got=f"{source}: {_checksums(record['files'])}",
                        run="ossicle store audit each of them, and merge without the wrong one",
                    )


def _checksums(files: dict[str, Any]) -> str:
    return ", ".join(file["sha256"][:16] for file in files.values())


def _identity(sources: list[Location], meta: StoreMeta) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """Return the identity that stage 1 gives this plan, so that a recipe finds the merged store as its own."""
    for source in sources:
        if is_finished(source):
            found = read_marker(source)
            return found.config, found.inputs, _kept_summary(found)
    return meta.windowing, {"manifest": meta.manifest_digest}, {}


def _kept_summary(found: artifact.Artifact) -> dict[str, Any]:
    derived = {"rows", "ok", "rejected", "shards", "arrays"}
    return {key: value for key, value in found.summary.items() if key not in derived}


def _check_layout(source: Location, meta: StoreMeta, first: StoreMeta) -> None:
    for field in ("shard_rows", "chunk_rows"):
        if getattr(meta, field) != getattr(first, field):
            raise StoreError(
                f"{source} has another {field} than the first store",
                expected=getattr(first, field),
                got=getattr(meta, field),
                run="embed one of them again with the other's embed." + field,
            )


def _check_same(source: Location, spec: ArraySpec, first: ArraySpec) -> None:
    for field in ("digest", "dtype", "row_shape", "name"):
        if getattr(spec, field) != getattr(first, field):
            raise DigestMismatchError(
                f"{spec.path} of {source} has another {field} than the first store's",
                expected=getattr(first, field),
                got=getattr(spec, field),
                run="embed one of them again with the other's recipe",
            )


def _concatenate(sources: list[Location], metas: list[StoreMeta], target: Location) -> Merged:
    readers = [StoreReader(source) for source in sources]
    arrays = _common_arrays(readers)
    rows, taken, dropped = _end_to_end(readers)
    meta = StoreMeta(
        name=" + ".join(dict.fromkeys(meta.name for meta in metas)),
        manifest_digest=digest({"concatenated": [meta.manifest_digest for meta in metas]}),
        windowing={"concatenated": [meta.windowing for meta in metas]},
        shard_rows=metas[0].shard_rows,
        chunk_rows=metas[0].chunk_rows,
        arrays=arrays,
        asked={key: value for one in metas for key, value in one.asked.items()},
    )
    lost = pandas.concat([reader.rejects for reader in readers], ignore_index=True)
    with StoreWriter.create(target, rows, meta, lost[lost["row"] == NO_ROW]) as writer:
        gather = _Gatherer(readers, taken)
        copied = 0
        for spec in arrays:
            for shard in writer.pending([spec.digest]):
                start, stop = writer.meta.bounds(shard)
                members, rejects, missing = gather.shard(spec, start, stop)
                writer.write_members(shard, spec, members, rejects, missing)
                copied += 1
        inputs = {f"store.{number}": reader.digest for number, reader in enumerate(readers)}
        finished = writer.finish(config=meta.windowing, inputs=inputs)
    return Merged("concatenated", len(rows), copied, dropped, 0, finished)


def _common_arrays(readers: list[StoreReader]) -> tuple[ArraySpec, ...]:
    held = [
        {spec.path: spec for spec in reader.meta.arrays if spec.path in finished_arrays(reader.location)}
        for reader in readers
    ]
    for reader, own in zip(readers, held, strict=True):
        for spec in own.values():
            if spec.path in held[0]:
                _check_same(reader.location, spec, held[0][spec.path])
        if set(own) != set(held[0]):
            raise DigestMismatchError(
                "stores of different plans can be laid end to end only where they hold the same arrays",
                expected=f"{readers[0].location}: {_listed(held[0])}",
                got=f"{reader.location}: {_listed(own)}",
                run="ossicle embed each of them with one [embed] section",
            )
    return tuple(held[0].values())


def _listed(arrays: dict[str, ArraySpec]) -> str:
    return ", ".join(
        f"{spec.name}{':' * bool(spec.output)}{spec.output} {spec.digest}" for spec in arrays.values()
    )


def _end_to_end(readers: list[StoreReader]) -> tuple[pandas.DataFrame, numpy.ndarray, int]:
    """Return the rows of all stores, (source, row) of each, and how many repeated ones were left out."""
    every = pandas.concat(
        [reader.rows.assign(_source=number) for number, reader in enumerate(readers)],
        ignore_index=True,
    )
    if "split" in every.columns:
        both = every.groupby("key")["split"].nunique()
        if (both > 1).any():
            key = both.index[both > 1][0]
            split = every.loc[every["key"] == key, ["_source", "split"]].to_numpy().tolist()
            raise StoreError(
                f"{int((both > 1).sum())} windows are in different splits of different stores",
                expected="each window in one split",
                got=f"key {key}: " + ", ".join(f"{readers[n].location} {name}" for n, name in split),
                run="take the clips out of one manifest, and embed it again",
            )
    kept = every.drop_duplicates("key").reset_index(drop=True)
    taken = kept[["_source", "row"]].to_numpy(dtype=numpy.int64)
    rows = kept.drop(columns=["_source", "status"]).assign(row=numpy.arange(len(kept)))
    return rows, taken, len(every) - len(kept)


class _Gatherer:
    """Reads the rows of a new shard from wherever they lie; the last shard of each source is kept decoded."""

    def __init__(self, readers: list[StoreReader], taken: numpy.ndarray) -> None:
        self.readers, self.taken = readers, taken
        self._last: tuple[Any, Any] = (None, None)

    def shard(
        self, spec: ArraySpec, start: int, stop: int
    ) -> tuple[dict[str, numpy.ndarray], pandas.DataFrame, list[int]]:
        parts: dict[str, list[numpy.ndarray]] = {name: [] for name in zarr_layout.members(spec)}
        rejects: list[dict[str, Any]] = []
        missing: list[int] = []
        for source, shard, positions, begin in self._runs(start, stop):
            members, record = self._read(source, spec, shard)
            first = self.readers[source].meta.bounds(shard)[0]
            for name, values in members.items():
                parts[name].append(values[positions])
            place = {int(position) + first: begin + offset for offset, position in enumerate(positions)}
            rejects += [
                {**reject, "row": place[reject["row"]]}
                for reject in record["rejects"]
                if reject["row"] in place
            ]
            missing += [place[row] for row in record.get("missing", ()) if row in place]
        stored = {name: numpy.concatenate(values) for name, values in parts.items()}
        return stored, tables.merge_rejects(None, rejects), missing

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int, numpy.ndarray, int]]:
        """Yield source, its shard, the rows within it, and the first new row, run by run."""
        wanted = self.taken[start:stop]
        shards = numpy.array([row // self.readers[source].meta.shard_rows for source, row in wanted])
        breaks = numpy.flatnonzero((numpy.diff(wanted[:, 0]) != 0) | (numpy.diff(shards) != 0)) + 1
        for run in numpy.split(numpy.arange(len(wanted)), breaks):
            source, shard = int(wanted[run[0], 0]), int(shards[run[0]])
            yield source, shard, wanted[run, 1] % self.readers[source].meta.shard_rows, start + int(run[0])

    def _read(self, source: int, spec: ArraySpec, shard: int) -> tuple[dict[str, numpy.ndarray], Any]:
        key = (source, spec.path, shard)
        if self._last[0] != key:
            self._last = (key, self.readers[source].read_checked(spec, shard))
        members, record = self._last[1]
        return members, record
