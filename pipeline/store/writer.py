"""Writes a store shard by shard. ``kill -9`` at any moment leaves each shard whole or absent.

A shard is encoded in memory, written and synced under a temporary name in ``.incoming/``, renamed into
place, and only then does its commit record appear (written the same way). A shard without a record is
pending and is written again; whatever order and however often, the finished bytes are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pandas

from pipeline import artifact
from pipeline.errors import StoreError
from pipeline.store import tables, topk, zarr_layout
from pipeline.store.admission import check_plan, check_rows, merged
from pipeline.store.incoming import Incoming, place
from pipeline.store.quantisation import quantise
from pipeline.store.schema import (
    CLIPS_FILE,
    COMMITS_FOLDER,
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

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.meta: StoreMeta = read_meta(self.folder)
        self.rows: pandas.DataFrame = tables.read(self.folder / CLIPS_FILE)
        check_rows(self.folder, self.meta, self.rows)
        self._encoders: dict[tuple[str, str], zarr_layout.ShardEncoder] = {}
        self._incoming = Incoming(self.folder)

    @classmethod
    def create(
        cls, folder: Path, rows: pandas.DataFrame, meta: StoreMeta, rejects: tables.Rejects = None
    ) -> StoreWriter:
        """Create the store, or open it again; arrays that it lacks are added beside those it has.

        Args:
            folder: the store's folder.
            rows: the window plan: ``row`` 0..n-1 in order and ``key`` at least.
            meta: the description; its ``rows`` and ``rows_digest`` are computed here.
            rejects: clips that never became a row (the manifest's rejects): columns of ``rejects.parquet``
                without ``row``. They are carried into the store's ``rejects.parquet``.

        Raises:
            DigestMismatchError: the folder holds another plan or manifest.
            StoreError: a plan without rows, or rows out of order.
        """
        folder = Path(folder)
        check_plan(rows)
        rows = tables.round_trip(rows.drop(columns=["status"], errors="ignore"))
        meta = meta.model_copy(update={"rows": len(rows), "rows_digest": rows_digest(rows)})
        known = (folder / STORE_FILE).is_file()
        if known:
            meta = merged(folder, read_meta(folder), meta)
        incoming = Incoming(folder)
        try:
            if not known:
                incoming.write(folder / REJECTS_FILE, tables.to_bytes(tables.rejects_table(rejects)))
                incoming.write(folder / CLIPS_FILE, tables.to_bytes(rows.assign(status=PENDING)))
            incoming.write(folder / STORE_FILE, (meta.model_dump_json(indent=2) + "\n").encode())
            for spec in meta.arrays:
                if not (folder / spec.path).is_dir():
                    scratch = incoming.path()
                    zarr_layout.create_group(scratch, spec, meta)
                    incoming.adopt(scratch, folder / spec.path)
        finally:
            incoming.close()
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> StoreWriter:
        """Open an existing store for writing (each worker does). Temporary files of dead writers go.

        Raises:
            MissingArtifactError: there is none.
            DigestMismatchError: its clips are not those it was made for.
        """
        return cls(folder)

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
        return [
            shard
            for shard in range(self.meta.shards)
            if shard % world == rank and not all(self.is_committed(spec, shard) for spec in specs)
        ]

    def is_committed(self, spec: ArraySpec, shard: int) -> bool:
        """Whether ``shard`` of ``spec`` has a commit record and its files have their sizes."""
        record = read_commit(self.folder, spec, shard)
        if record is None:
            return False
        for path, file in record["files"].items():
            try:
                if (self.folder / path).stat().st_size != file["bytes"]:
                    return False
            except FileNotFoundError:
                return False
        return True

    def write_shard(
        self, shard: int, arrays: Mapping[str, numpy.ndarray], rejects: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Write ``shard`` of some arrays whole, then commit it; what was committed before is left alone.

        Args:
            shard: index; its rows are ``meta.bounds(shard)``.
            arrays: ``ArraySpec.path`` to (rows, *row_shape); cast to the stored type. Rows named in
                ``rejects`` may hold anything: they are stored as missing.
            rejects: one mapping a row that could not be made: ``row``, ``reason``, ``problem`` and, if known,
                ``path`` and ``clip_id``.

        Raises:
            StoreError: a wrong shape, a reject outside the shard, or a non-finite value in a good row.
        """
        start, stop = self.meta.bounds(shard)
        # A row that another array lacks is missing here too, whether they were written together or a kill apart.
        known = [record for spec in self.meta.arrays if (record := read_commit(self.folder, spec, shard))]
        earlier = [reject for record in known for reject in record["rejects"]]
        table = tables.merge_rejects(None, [*rejects, *earlier])
        rejected = table["row"].to_numpy(dtype=numpy.int64) - start
        if len(rejected) and (rejected.min() < 0 or rejected.max() >= stop - start):
            raise StoreError(
                f"a reject is outside shard {shard}",
                expected=f"rows {start} to {stop - 1}",
                got=list(table["row"]),
            )
        for path, values in arrays.items():
            spec = self.meta.find(path)
            if self.is_committed(spec, shard):
                continue
            if values.shape != (stop - start, *spec.row_shape):
                raise StoreError(
                    f"wrong shape for shard {shard} of {path}",
                    expected=(stop - start, *spec.row_shape),
                    got=values.shape,
                )
            stored = _stored(spec, values, rejected, start)
            staged = {
                zarr_layout.shard_file(spec, name, shard): self._stage(
                    self._encode(spec, name, shard, start, rows)
                )
                for name, rows in stored.items()
            }
            record = {
                "array": spec.digest,
                "shard": shard,
                "rows": [start, stop],
                "keys": keys_digest(self.rows["key"].iloc[start:stop]),
                "files": {
                    path: {"bytes": size, "sha256": sha256} for path, (_, size, sha256) in staged.items()
                },
                "rejects": table.to_dict("records"),
            }
            if spec.top_k is not None:
                record["lost_mass"] = _lost_mass(stored)
            with self._incoming.exclusive():
                self._commit(spec, shard, staged, record)

    def finish(
        self,
        array_digests: Iterable[str] | None = None,
        *,
        config: Any,
        inputs: dict[str, str],
        summary: dict[str, Any] | None = None,
    ) -> artifact.Artifact:
        """Derive ``clips.parquet`` and ``rejects.parquet`` from the commit records and write the marker.

        The bytes of both tables depend on the plan and the records alone, not on who wrote what when. Arrays
        that are complete are listed in the marker's summary; an abandoned one stays beside them, unread.

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
        earlier = tables.read(self.folder / REJECTS_FILE)
        clips, rejects = derive_tables(self.folder, self.meta, complete, self.rows, earlier)
        self._incoming.write(self.folder / REJECTS_FILE, tables.to_bytes(rejects))
        self._incoming.write(self.folder / CLIPS_FILE, tables.to_bytes(clips))
        counts = clips["status"].value_counts()
        found = {
            "rows": self.meta.rows,
            "ok": int(counts.get(OK, 0)),
            "rejected": int(counts.get(REJECTED, 0)),
            "shards": self.meta.shards,
            "arrays": {spec.path: self._described(spec) for spec in complete},
        }
        return artifact.finish(
            self.folder, kind="store", config=config, inputs=inputs, summary={**(summary or {}), **found}
        )

    def discard(self, spec: ArraySpec, shard: int) -> None:
        """Forget a damaged shard (marker, record and files go), so that ``ossicle embed`` makes it anew."""
        with self._incoming.exclusive():
            (self.folder / artifact.MARKER).unlink(missing_ok=True)
            commit_path(self.folder, spec, shard).unlink(missing_ok=True)
            for name in zarr_layout.members(spec):
                (self.folder / zarr_layout.shard_file(spec, name, shard)).unlink(missing_ok=True)

    def _described(self, spec: ArraySpec) -> dict[str, Any]:
        found: dict[str, Any] = {"name": spec.name, "digest": spec.digest}
        if spec.top_k is not None:
            lost = [
                record["lost_mass"]
                for shard in range(self.meta.shards)
                if (record := read_commit(self.folder, spec, shard))
            ]
            rows = sum(one["rows"] for one in lost)
            total = sum(one["mean"] * one["rows"] for one in lost)
            found["lost_mass"] = {
                "mean": total / max(rows, 1),
                "largest": max((one["largest"] for one in lost), default=0.0),
            }
        return found

    def _commit(
        self, spec: ArraySpec, shard: int, staged: dict[str, tuple[Path, int, str]], record: dict[str, Any]
    ) -> None:
        if self.is_committed(spec, shard):
            for temporary, _, _ in staged.values():
                temporary.unlink()
            return
        commit_path(self.folder, spec, shard).unlink(missing_ok=True)
        for path, (temporary, _, _) in staged.items():
            place(temporary, self.folder / path)
        content = (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
        self._incoming.write(commit_path(self.folder, spec, shard), content)

    def _encode(self, spec: ArraySpec, name: str, shard: int, start: int, rows: numpy.ndarray) -> bytes:
        key = (spec.path, name)
        if key not in self._encoders:
            self._encoders[key] = zarr_layout.ShardEncoder(self.folder / spec.path / name)
        return self._encoders[key].encode(shard, start, rows)

    def _stage(self, content: bytes) -> tuple[Path, int, str]:
        return self._incoming.stage(content), len(content), hashlib.sha256(content).hexdigest()


def finished_arrays(folder: Path) -> list[str]:
    """Return the paths of the arrays that the store's marker calls complete; none without a marker."""
    if not artifact.is_finished(folder):
        return []
    return sorted(artifact.read(folder).summary.get("arrays", {}))


def commit_path(folder: Path, spec: ArraySpec, shard: int) -> Path:
    """Return where the commit record of ``shard`` is."""
    return folder / COMMITS_FOLDER / spec.digest[:12] / f"{shard}.json"


def read_commit(folder: Path, spec: ArraySpec, shard: int) -> dict[str, Any] | None:
    """Return the commit record of ``shard``, or None where there is none."""
    path = commit_path(folder, spec, shard)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(
            f"{path} is damaged: {error}", run=f"ossicle store verify {folder} --repair, then ossicle embed"
        ) from error
    if not isinstance(record, dict) or not {"array", "shard", "rows", "keys", "files", "rejects"} <= set(
        record
    ):
        raise StoreError(
            f"{path} is no commit record", run=f"ossicle store verify {folder} --repair, then ossicle embed"
        )
    return record


def derive_tables(
    folder: Path,
    meta: StoreMeta,
    specs: Iterable[ArraySpec],
    rows: pandas.DataFrame,
    earlier: pandas.DataFrame,
) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Return clips with their status and the whole list of rejects, a pure function of plan and records.

    A row is rejected if any of the arrays ``specs`` lacks it.
    """
    records = [
        reject
        for spec in specs
        for shard in range(meta.shards)
        for reject in (read_commit(folder, spec, shard) or {"rejects": []})["rejects"]
    ]
    rejects = tables.merge_rejects(earlier, records)
    rejected = rows["row"].isin(rejects["row"])
    status = pandas.Series(numpy.where(rejected, REJECTED, OK), index=rows.index)
    return rows.assign(status=status), rejects


def _lost_mass(stored: dict[str, numpy.ndarray]) -> dict[str, float]:
    lost = topk.lost_mass(stored["values"], stored["tail"])
    lost = lost[numpy.isfinite(lost)]
    if not len(lost):
        return {"rows": 0, "mean": 0.0, "largest": 0.0}
    return {"rows": len(lost), "mean": float(lost.mean()), "largest": float(lost.max())}


def _stored(
    spec: ArraySpec, values: numpy.ndarray, rejected: numpy.ndarray, start: int
) -> dict[str, numpy.ndarray]:
    kind = numpy.dtype(numpy.float32 if spec.dtype == "uint8" else spec.dtype)
    with numpy.errstate(over="ignore"):
        rows = numpy.array(values, dtype=kind)
    rows[rejected] = numpy.nan
    bad = ~numpy.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    bad[rejected] = False
    if bad.any():
        first = int(numpy.flatnonzero(bad)[0])
        raise StoreError(
            f"row {start + first} of {spec.path} is not finite as {kind}",
            expected="finite values, or the row among the rejects",
            got=f"{int(bad.sum())} such rows in this shard",
        )
    if spec.top_k is not None:
        exact = numpy.array(values, dtype=numpy.float32)
        exact[rejected] = numpy.nan
        kept, indices, tail = topk.encode(exact, spec.top_k)
        return {"values": kept.astype(kind), "indices": indices, "tail": tail}
    if spec.dtype != "uint8":
        return {spec.data_name: rows}
    codes, scale, offset = quantise(rows)
    return {spec.data_name: codes, "scale": scale, "offset": offset}
