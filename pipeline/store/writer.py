"""Writes a store shard by shard. ``kill -9`` at any moment leaves each shard whole or absent.

A shard is encoded in memory, written and synced under a temporary name in ``.incoming/``, renamed into
place, and only then does its commit record appear (written the same way). A shard without a record is
pending and is written again; whatever order and however often, the finished bytes are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pandas

from pipeline import artifact
from pipeline.errors import StoreError
from pipeline.store import encoding, tables, zarr_layout
from pipeline.store.admission import check_plan, check_rows, describe, incoming_of
from pipeline.store.commits import (
    commit_name,
    derive_tables,
    described_files,
    parse_commit,
    read_commit,
    read_commits,
    read_marker,
    record_bytes,
)
from pipeline.store.location import Location, Place, at
from pipeline.store.schema import (
    CLIPS_FILE,
    OK,
    PENDING,
    REJECTED,
    REJECTS_FILE,
    STORE_FILE,
    ArraySpec,
    StoreMeta,
    keys_digest,
    read_meta,
    rows_digest,
)


class StoreWriter:
    """Writes whole shards; several processes may each hold one on the same folder.

    Get one by ``create`` (the stage, once) or ``open`` (each worker). Two writers that make the same shard do
    no harm: the first commit stands.
    """

    def __init__(self, place: Place | Location) -> None:
        self.location = at(place)
        self.meta: StoreMeta = read_meta(self.location)
        self.rows: pandas.DataFrame = tables.load(self.location, CLIPS_FILE)
        check_rows(self.location, self.meta, self.rows)
        self._encoders: dict[tuple[str, str], zarr_layout.ShardEncoder] = {}
        self._incoming = incoming_of(self.location)

    @property
    def folder(self) -> Path:
        """The store's folder; StoreError if it is in an object store."""
        return self.location.folder

    @classmethod
    def create(
        cls,
        place: Place | Location,
        rows: pandas.DataFrame,
        meta: StoreMeta,
        rejects: tables.Rejects = None,
    ) -> StoreWriter:
        """Create the store, or open it again; arrays that it lacks are added beside those it has.

        Args:
            place: the store's folder, or its URL.
            rows: the window plan: ``row`` 0..n-1 in order and ``key`` at least.
            meta: the description; its ``rows`` and ``rows_digest`` are computed here.
            rejects: clips that never became a row (the manifest's rejects): columns of ``rejects.parquet``
                without ``row``. They are carried into the store's ``rejects.parquet``.

        Raises:
            DigestMismatchError: the folder holds another plan or manifest.
            StoreError: a plan without rows, or rows out of order.
        """
        location = at(place)
        check_plan(rows)
        rows = tables.round_trip(rows.drop(columns=["status"], errors="ignore"))
        meta = meta.model_copy(update={"rows": len(rows), "rows_digest": rows_digest(rows)})
        incoming = incoming_of(location)
        try:
            # Ranks that start together: a late one must not undo what a quick one has finished.
            with incoming.exclusive():
                if location.size(STORE_FILE) is None:
                    incoming.write(REJECTS_FILE, tables.to_bytes(tables.rejects_table(rejects)))
                    incoming.write(CLIPS_FILE, tables.to_bytes(rows.assign(status=PENDING)))
                meta = describe(location, incoming, meta)
            for spec in meta.arrays:
                if location.size(f"{spec.path}/zarr.json") is None:
                    incoming.adopt(spec.path, zarr_layout.group_files(spec, meta))
        finally:
            incoming.close()
        return cls(location)

    @classmethod
    def open(cls, place: Place | Location) -> StoreWriter:
        """Open an existing store for writing (each worker does). Temporary files of dead writers go.

        Raises:
            MissingArtifactError: there is none.
            DigestMismatchError: its clips are not those it was made for.
        """
        return cls(place)

    def close(self) -> None:
        """Let go of the folder's lock; also done when the process ends, however it ends."""
        self._incoming.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def specs(self, array_digests: Iterable[str] | None = None) -> list[ArraySpec]:
        """Return the arrays of those digests; default all."""
        if array_digests is None:
            return list(self.meta.arrays)
        wanted = set(array_digests)
        found = [spec for spec in self.meta.arrays if spec.digest in wanted]
        if len(found) < len(wanted):
            raise StoreError(
                "the store has no array of that digest",
                expected=[spec.digest for spec in self.meta.arrays],
                got=sorted(wanted),
            )
        return found

    def pending(self, array_digests: Iterable[str] | None = None, rank: int = 0, world: int = 1) -> list[int]:
        """Return the shards that any of the arrays still lacks; of them, every ``world``-th from ``rank``.

        Args:
            array_digests: digests of the arrays to ask about; default all.
            rank: of this worker.
            world: number of workers.
        """
        specs = self.specs(array_digests)
        mine = [shard for shard in range(self.meta.shards) if shard % world == rank]
        if not self.location.remote:
            return [shard for shard in mine if not all(self.is_committed(spec, shard) for spec in specs)]
        # A request a shard would take minutes; an object is whole or absent, so that its name is enough.
        names = set(self.location.listing(""))
        needed = {
            shard: {
                name
                for spec in specs
                for name in (commit_name(spec, shard), *zarr_layout.shard_files(spec, shard))
            }
            for shard in mine
        }
        return [shard for shard in mine if not needed[shard] <= names]

    def is_committed(self, spec: ArraySpec, shard: int) -> bool:
        """Whether ``shard`` of ``spec`` has a commit record and its files have their sizes."""
        record = read_commit(self.location, spec, shard)
        return record is not None and self._is_whole(record)

    def write_shard(
        self,
        shard: int,
        arrays: Mapping[str, numpy.ndarray],
        rejects: Sequence[Mapping[str, Any]] = (),
        missing: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Write ``shard`` of some arrays whole, then commit it; what was committed before is left alone.

        Args:
            shard: index; its rows are ``meta.bounds(shard)``.
            arrays: ``ArraySpec.path`` to (rows, *row_shape); cast to the stored type. Rows named in
                ``rejects`` may hold anything: they are stored as missing.
            rejects: one mapping a row that could not be made: ``row``, ``reason``, ``problem`` and, if known,
                ``path`` and ``clip_id``.
            missing: ``ArraySpec.path`` to rows that this array alone lacks (a joined file may not cover every
                clip): they are stored as missing, and stay usable in every other array.

        Raises:
            StoreError: a wrong shape, a reject outside the shard, or a non-finite value in a good row.
        """
        start, stop = self.meta.bounds(shard)
        # A row that another array lacks is missing here too, whether they were written together or a kill apart.
        known = self._records(shard)
        earlier = [reject for one in known.values() for reject in one["rejects"]]
        table = tables.merge_rejects(None, [*rejects, *earlier])
        rejected = self._positions(shard, table["row"])
        for path, values in arrays.items():
            spec = self.meta.find(path)
            if path in known and self._is_whole(known[path]):
                continue
            if values.shape != (stop - start, *spec.row_shape):
                raise StoreError(
                    f"wrong shape for shard {shard} of {path}",
                    expected=(stop - start, *spec.row_shape),
                    got=values.shape,
                )
            lacking = self._positions(shard, (missing or {}).get(path, ()))
            stored = encoding.stored(
                spec, values, numpy.union1d(rejected, lacking).astype(numpy.int64), start
            )
            self.write_members(shard, spec, stored, table, [int(row) + start for row in lacking])

    def write_members(
        self,
        shard: int,
        spec: ArraySpec,
        stored: Mapping[str, numpy.ndarray],
        rejects: pandas.DataFrame,
        missing: Iterable[int] = (),
    ) -> None:
        """Write and commit ``shard`` of one array from what is stored of it (``zarr_layout.members``).

        Args:
            shard: index.
            spec: the array.
            stored: member name to its rows, missing ones as missing are stored.
            rejects: as ``tables.rejects_table`` gives them; rows are the store's.
            missing: rows of the store that this array alone lacks.
        """
        start, stop = self.meta.bounds(shard)
        encoded = {
            zarr_layout.shard_file(spec, name, shard): self._encode(spec, name, shard, start, rows)
            for name, rows in stored.items()
        }
        record: dict[str, Any] = {
            "array": spec.digest,
            "shard": shard,
            "rows": [start, stop],
            "keys": keys_digest(self.rows["key"].iloc[start:stop]),
            "files": described_files(encoded),
            "rejects": rejects.to_dict("records"),
        }
        lacking = sorted({int(row) for row in missing})
        if lacking:
            record["missing"] = lacking
        if spec.top_k is not None:
            record["lost_mass"] = encoding.lost_mass(stored)
        self._commit(spec, shard, encoded, record)

    def copy_shard(
        self, spec: ArraySpec, shard: int, record: dict[str, Any], files: dict[str, bytes]
    ) -> None:
        """Commit a shard that was written elsewhere: its record and its files' bytes, as they are.

        Raises:
            StoreError: a file is not what the record says, or the record belongs to other rows.
        """
        start, stop = self.meta.bounds(shard)
        keys = keys_digest(self.rows["key"].iloc[start:stop])
        if (record["array"], record["rows"], record["keys"]) != (spec.digest, [start, stop], keys):
            raise StoreError(
                f"the commit record of shard {shard} of {spec.path} belongs to other rows or another array",
                expected=f"array {spec.digest}, rows {[start, stop]}, keys {keys}",
                got=f"array {record['array']}, rows {record['rows']}, keys {record['keys']}",
            )
        names = set(zarr_layout.shard_files(spec, shard))
        found = described_files(files)
        if set(found) != names or found != record["files"]:
            raise StoreError(f"shard {shard} of {spec.path} is damaged", expected=record["files"], got=found)
        if not self.is_committed(spec, shard):
            self._commit(spec, shard, files, record)

    def finish(
        self,
        array_digests: Iterable[str] | None = None,
        *,
        config: Any,
        inputs: dict[str, str],
        summary: dict[str, Any] | None = None,
    ) -> artifact.Artifact:
        """Derive ``clips.parquet`` and ``rejects.parquet`` from the commit records and write the marker.

        The bytes of both tables depend on the plan and the records alone, not on who wrote what when; they are
        written under the store's lock, for several ranks may find it complete. Arrays that are complete are
        listed in the marker's summary; an abandoned one stays beside them, unread.

        Args:
            array_digests: arrays that must be complete; default all.
            config: of the artifact's identity.
            inputs: of the artifact's identity.
            summary: further entries for the marker.

        Raises:
            StoreError: shards are pending.
        """
        pending = self.pending(array_digests)
        if pending:
            raise StoreError(
                f"{len(pending)} of {self.meta.shards} shards are not written",
                expected="every shard committed",
                got=f"pending: {pending[:8]}{' ...' if len(pending) > 8 else ''}",
                run="ossicle embed",
            )
        complete = [spec for spec in self.meta.arrays if not self.pending([spec.digest])]
        with self._incoming.exclusive():
            return self._finished(complete, config, inputs, summary or {})

    def discard(self, spec: ArraySpec, shard: int) -> None:
        """Forget a damaged shard (marker, record and files go), so that ``ossicle embed`` makes it anew."""
        with self._incoming.exclusive():
            for name in (
                artifact.MARKER, commit_name(spec, shard), *zarr_layout.shard_files(spec, shard)
            ):  # fmt: skip
                self.location.remove(name)

    def _finished(
        self, complete: list[ArraySpec], config: Any, inputs: dict[str, str], summary: dict[str, Any]
    ) -> artifact.Artifact:
        earlier = tables.load(self.location, REJECTS_FILE)
        clips, rejects = derive_tables(self.location, self.meta, complete, self.rows, earlier)
        self._incoming.write(REJECTS_FILE, tables.to_bytes(rejects))
        self._incoming.write(CLIPS_FILE, tables.to_bytes(clips))
        counts = clips["status"].value_counts()
        found = {
            "rows": self.meta.rows,
            "ok": int(counts.get(OK, 0)),
            "rejected": int(counts.get(REJECTED, 0)),
            "shards": self.meta.shards,
            "arrays": {spec.path: self._described(spec) for spec in complete},
        }
        marker = artifact.marker(kind="store", config=config, inputs=inputs, summary={**summary, **found})
        self._incoming.write(artifact.MARKER, marker)
        return read_marker(self.location)

    def _is_whole(self, record: dict[str, Any]) -> bool:
        return all(self.location.size(name) == file["bytes"] for name, file in record["files"].items())

    def _records(self, shard: int) -> dict[str, dict[str, Any]]:
        """Return array path to commit record, of the arrays that have one of ``shard``."""
        names = [commit_name(spec, shard) for spec in self.meta.arrays]
        return {
            spec.path: parse_commit(content, self.location, spec, shard)
            for spec, content in zip(self.meta.arrays, self.location.read_many(names), strict=True)
            if content is not None
        }

    def _positions(self, shard: int, rows: Iterable[int]) -> numpy.ndarray:
        start, stop = self.meta.bounds(shard)
        found = numpy.array(list(rows), dtype=numpy.int64) - start
        if len(found) and (found.min() < 0 or found.max() >= stop - start):
            raise StoreError(
                f"a reject is outside shard {shard}",
                expected=f"rows {start} to {stop - 1}",
                got=[int(row) + start for row in found],
            )
        return found

    def _described(self, spec: ArraySpec) -> dict[str, Any]:
        found: dict[str, Any] = {"name": spec.name, "digest": spec.digest}
        records = [record for record in read_commits(self.location, spec, range(self.meta.shards)) if record]
        lacking = sum(len(record.get("missing", ())) for record in records)
        if lacking:
            found["missing"] = lacking
        if spec.top_k is not None:
            lost = [record["lost_mass"] for record in records]
            rows = sum(one["rows"] for one in lost)
            total = sum(one["mean"] * one["rows"] for one in lost)
            found["lost_mass"] = {
                "mean": total / max(rows, 1),
                "largest": max((one["largest"] for one in lost), default=0.0),
            }
        return found

    def _commit(self, spec: ArraySpec, shard: int, files: dict[str, bytes], record: dict[str, Any]) -> None:
        if self.location.remote:
            # Nothing to lock or to rename: whoever makes this shard puts the same bytes, the record last.
            for name, content in files.items():
                self.location.write(name, content)
            self.location.write(commit_name(spec, shard), record_bytes(record))
            return
        staged = {name: self._incoming.stage(content) for name, content in files.items()}
        with self._incoming.exclusive():
            if self.is_committed(spec, shard):
                for one in staged.values():
                    self._incoming.drop(one)
                return
            self.location.remove(commit_name(spec, shard))
            for name, one in staged.items():
                self._incoming.place(one, name)
            self._incoming.write(commit_name(spec, shard), record_bytes(record))

    def _encode(self, spec: ArraySpec, name: str, shard: int, start: int, rows: numpy.ndarray) -> bytes:
        key = (spec.path, name)
        if key not in self._encoders:
            description = self.location.read(f"{spec.path}/{name}/zarr.json")
            self._encoders[key] = zarr_layout.ShardEncoder(description)
        return self._encoders[key].encode(shard, start, rows)
