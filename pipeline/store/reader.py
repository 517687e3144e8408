"""Reads a finished store, whole shards at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pandas
import zarr
from zarr.core.buffer import default_buffer_prototype

from pipeline.config import LogMelConfig
from pipeline.errors import DigestMismatchError, StoreError
from pipeline.store import choice, encoding, tables, zarr_layout
from pipeline.store.combination import Combination
from pipeline.store.commits import described_files, read_commit, read_commits, read_marker
from pipeline.store.location import Location, Place, at
from pipeline.store.schema import (
    CLIPS_FILE,
    MISSING,
    OK,
    REJECTS_FILE,
    SCHEMA_VERSION,
    ArraySpec,
    frontend_digest,
    keys_digest,
    read_meta,
    rows_digest,
)
from pipeline.store.shard_file import PlainShards

KINDS = ("spectrogram", "embedding")


class StoreReader:
    """A finished store: its rows and, shard by shard, its arrays. Safe to use from several threads.

    Args:
        place: the store's folder, or its URL.
        frontend: digest (or its first 12 digits) of the spectrogram array to read, or the ``LogMelConfig``
            that it must come from.
        teacher: what to read as the embedding: ``NAME``, ``NAME:OUTPUT`` (``beats:layer.3``,
            ``passt:logits``) or a digest; or a ``Combination`` of several.
        manifest: digest of the manifest that the store must come from; None = any.

    Raises:
        MissingArtifactError: no finished store there.
        DigestMismatchError: another frontend, teacher, manifest or plan than asked for.
        StoreError: several arrays fit and none was chosen.

    Attributes:
        rows: ``clips.parquet``. Rows that a chosen array lacks have the status ``missing``.

    Example:
        >>> reader = StoreReader(folder, teacher="aisfx")
        >>> reader.read_shard(0)["spectrogram"].shape
        (512, 64, 115)
    """

    def __init__(
        self,
        place: Place | Location,
        *,
        frontend: str | LogMelConfig | None = None,
        teacher: str | Combination | None = None,
        manifest: str | None = None,
    ) -> None:
        self.location = at(place)
        self.artifact = read_marker(self.location, run="ossicle embed")
        self.meta = read_meta(self.location)
        if manifest is not None and manifest != self.meta.manifest_digest:
            raise DigestMismatchError(
                f"{self.location} was embedded from another manifest",
                expected=manifest,
                got=self.meta.manifest_digest,
                run="ossicle embed",
            )
        self.rows: pandas.DataFrame = tables.load(self.location, CLIPS_FILE)
        found = rows_digest(self.rows)
        if found != self.meta.rows_digest:
            raise DigestMismatchError(
                f"{self.location}/{CLIPS_FILE} does not belong to this store",
                expected=self.meta.rows_digest,
                got=found,
                run=f"ossicle store verify {self.location}",
            )
        wanted = frontend_digest(frontend) if isinstance(frontend, LogMelConfig) else frontend
        self._asked: dict[str, Any] = {"spectrogram": wanted, "embedding": teacher}
        self._chosen: dict[str, ArraySpec] = {}
        self._combined: tuple[Combination, list[ArraySpec]] | None = None
        self._arrays: dict[tuple[str, str], Any] = {}
        self._lock = threading.RLock()
        for kind, name in self._asked.items():
            if name is not None:
                self.spec(kind)

    def select(
        self, frontend: str | LogMelConfig | None = None, teacher: str | Combination | None = None
    ) -> StoreReader:
        """Return a reader of the same store bound to other arrays; None keeps what was chosen."""
        return StoreReader(
            self.location,
            frontend=frontend if frontend is not None else self._asked["spectrogram"],
            teacher=teacher if teacher is not None else self._asked["embedding"],
        )

    @property
    def folder(self) -> Path:
        """The store's folder; StoreError if it is in an object store."""
        return self.location.folder

    @property
    def digest(self) -> str:
        """The artifact's digest, for a run's inputs."""
        return self.artifact.digest

    @property
    def spectrogram(self) -> ArraySpec:
        """The spectrogram array that is read."""
        return self.spec("spectrogram")

    @property
    def embedding(self) -> ArraySpec:
        """What is read as the embedding; of a combination its name, width and digest."""
        return self.spec("embedding")

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the parts that lie side by side in a row of the embedding; of one array, its own."""
        spec = self.embedding
        if self._combined is None or self._combined[0].how == "mean":
            return spec.row_shape
        return tuple(part.row_shape[0] for part in self._combined[1])

    @property
    def shard_sizes(self) -> list[int]:
        """Rows of each shard, missing ones included."""
        return [stop - start for start, stop in map(self.meta.bounds, range(self.meta.shards))]

    @property
    def rejects(self) -> pandas.DataFrame:
        """``rejects.parquet``."""
        return tables.load(self.location, REJECTS_FILE)

    def spec(self, kind: str) -> ArraySpec:
        """Return the array of ``kind`` that is read: the chosen one, or the only one."""
        with self._lock:
            if kind not in self._chosen:
                asked = self._asked.get(kind)
                if isinstance(asked, Combination):
                    parts = [self._choose(kind, name) for name in asked.teachers]
                    self._combined = (asked, parts)
                    self._chosen[kind] = asked.spec(parts)
                else:
                    parts = [self._choose(kind, asked)]
                    self._chosen[kind] = parts[0]
                for part in parts:
                    self._mark_missing(part)
            return self._chosen[kind]

    def usable(self, split: str | None = None) -> numpy.ndarray:
        """Return, for every row, whether its status is ok (and it belongs to ``split``)."""
        mask = numpy.array(self.rows["status"] == OK, dtype=bool)
        if split is not None:
            if split not in set(self.rows["split"]):
                raise StoreError(
                    f"no row belongs to the split {split!r}",
                    expected=sorted(set(self.rows["split"])),
                    got=split,
                )
            mask &= numpy.array(self.rows["split"] == split, dtype=bool)
        return mask

    def read_shard(
        self, shard: int, arrays: Sequence[str] = KINDS, out: dict[str, numpy.ndarray] | None = None
    ) -> dict[str, numpy.ndarray]:
        """Return all rows of ``shard``.

        The spectrogram is float16 (rows, mels, frames), the embedding (rows, dim), logits (rows, classes)
        and frames (rows, time, dim) as stored. Missing rows are NaN.

        Args:
            shard: its index.
            arrays: kinds to read.
            out: kind to a C-contiguous array of that shape and dtype to read into.

        Raises:
            StoreError: a checksum does not match or the shard's file is gone.
        """
        start, stop = self.meta.bounds(shard)
        return {kind: self._read(kind, shard, start, stop, (out or {}).get(kind)) for kind in arrays}

    def parts(self, kind: str) -> list[ArraySpec]:
        """Return the arrays that ``kind`` is read from: one, or those of a combination."""
        spec = self.spec(kind)
        return self._combined[1] if kind == "embedding" and self._combined is not None else [spec]

    def composed(self, kind: str, parts: list[dict[str, numpy.ndarray]]) -> numpy.ndarray:
        """Return rows of ``kind`` of the stored members of each of its ``parts``: decoded, and combined.

        ``read_shard`` is this on a whole shard's members; any rows may be given, the same of every member.
        """
        values = [
            encoding.decoded(spec, [stored[name] for name in zarr_layout.members(spec)])
            for spec, stored in zip(self.parts(kind), parts, strict=True)
        ]
        if kind == "embedding" and self._combined is not None:
            return self._combined[0].combine(values)
        return values[0]

    def read_stored(self, spec: ArraySpec, shard: int, out: dict[str, numpy.ndarray]) -> None:
        """Read a shard's members as they are stored into ``out``: name to a C-contiguous array of its shape."""
        start, stop = self.meta.bounds(shard)
        for name in zarr_layout.members(spec):
            self._member(spec, name, shard, start, stop, out[name])

    def read_members(self, spec: ArraySpec, shard: int) -> dict[str, numpy.ndarray]:
        """Return a shard as it is stored: codes with scale and offset, top-k values with indices and tail."""
        start, stop = self.meta.bounds(shard)
        return {
            name: self._member(spec, name, shard, start, stop, None) for name in zarr_layout.members(spec)
        }

    def read_checked(self, spec: ArraySpec, shard: int) -> tuple[dict[str, numpy.ndarray], dict[str, Any]]:
        """Return ``read_members`` and the commit record, once files and rows are what the record says.

        Raises:
            StoreError: they are not.
        """
        start, stop = self.meta.bounds(shard)
        record = read_commit(self.location, spec, shard)
        names = zarr_layout.shard_files(spec, shard)
        contents = dict(zip(names, self.location.read_many(names), strict=True))
        found = described_files({name: content for name, content in contents.items() if content is not None})
        keys = keys_digest(self.rows["key"].iloc[start:stop])
        if record is None or (record["array"], record["rows"], record["keys"], record["files"]) != (
            spec.digest, [start, stop], keys, found,
        ):  # fmt: skip
            raise StoreError(
                f"shard {shard} of {spec.path} in {self.location} is not what its commit record says",
                run=f"ossicle store verify {self.location} --repair, then ossicle embed there",
            )
        return self.read_members(spec, shard), record

    def read_array(self, spec: ArraySpec, shard: int, out: numpy.ndarray | None = None) -> numpy.ndarray:
        """Return all rows of ``shard`` of the array ``spec`` of this store, decoded."""
        start, stop = self.meta.bounds(shard)
        names = list(zarr_layout.members(spec))
        if len(names) == 1:
            return self._member(spec, names[0], shard, start, stop, out)
        values = encoding.decoded(spec, list(self.read_members(spec, shard).values()))
        if out is None:
            return values
        out[...] = values
        return out

    def _read(self, kind: str, shard: int, start: int, stop: int, out: numpy.ndarray | None) -> numpy.ndarray:
        spec = self.spec(kind)
        if kind == "embedding" and self._combined is not None:
            combination, parts = self._combined
            return combination.combine([self.read_array(part, shard) for part in parts], out)
        return self.read_array(spec, shard, out)

    def _member(
        self, spec: ArraySpec, name: str, shard: int, start: int, stop: int, out: numpy.ndarray | None
    ) -> numpy.ndarray:
        array = self._open(spec, name)
        file = zarr_layout.shard_file(spec, name, shard)
        mend = f"ossicle store verify {self.location} --repair, then ossicle embed"
        try:
            if isinstance(array, PlainShards):
                if self.location.remote:
                    return array.decode(self.location.read(file), stop - start, out)
                return array.read(self.location.folder / file, stop - start, out)
            if isinstance(array, zarr_layout.ShardDecoder):
                return array.decode(shard, start, stop, self.location.read(file), out)
            if self.location.size(file) is None:
                # Zarr reads an absent shard as its fill value; here that would pass for rejected rows.
                raise FileNotFoundError(file)
            buffer = out
            if buffer is None:
                buffer = numpy.empty((stop - start, *array.shape[1:]), dtype=array.dtype)
            target: Any = default_buffer_prototype().nd_buffer.from_numpy_array(buffer)
            array.get_basic_selection(slice(start, stop), out=target)
        except FileNotFoundError:
            raise StoreError(
                f"shard {shard} of {spec.path}/{name} is missing",
                expected=f"{self.location}/{file}",
                run=mend,
            ) from None
        except StoreError:
            raise
        except (ValueError, RuntimeError, OSError) as error:
            raise StoreError(
                f"shard {shard} of {spec.path}/{name} cannot be read: {error}", run=mend
            ) from error
        return buffer

    def _open(self, spec: ArraySpec, name: str) -> Any:
        key = (spec.path, name)
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = self._opened(spec, name)
            return self._arrays[key]

    def _opened(self, spec: ArraySpec, name: str) -> zarr.Array | zarr_layout.ShardDecoder | PlainShards:
        found = zarr_layout.read_attributes(self.location, spec)
        if found.get("digest") != spec.digest or found.get("schema_version") != SCHEMA_VERSION:
            raise DigestMismatchError(
                f"{spec.path} holds another array than store.json says",
                expected=f"digest {spec.digest}, schema version {SCHEMA_VERSION}",
                got=f"digest {found.get('digest')}, schema version {found.get('schema_version')}",
                run=f"ossicle store verify {self.location} --repair, then ossicle embed",
            )
        description = self.location.read(f"{spec.path}/{name}/zarr.json")
        plain = PlainShards.of(description)
        array: zarr.Array | PlainShards
        opened: zarr.Array | zarr_layout.ShardDecoder | PlainShards
        if plain is not None and plain.shard_rows == self.meta.shard_rows:
            opened = array = plain
        elif self.location.remote:
            # One request for the whole shard: its index and its chunks apart would be one each.
            opened = decoder = zarr_layout.ShardDecoder(description)
            array = decoder.array
        else:
            opened = array = zarr_layout.open_array(self.location.folder / spec.path / name)
        dtype, row_shape = zarr_layout.members(spec)[name]
        if array.shape != (self.meta.rows, *row_shape) or array.dtype != numpy.dtype(dtype):
            raise StoreError(
                f"{spec.path}/{name} has another form than store.json says",
                expected=f"{dtype} {(self.meta.rows, *row_shape)}",
                got=f"{array.dtype} {array.shape}",
                run="move the store away and run ossicle embed again",
            )
        return opened

    def _mark_missing(self, spec: ArraySpec) -> None:
        if not self.artifact.summary["arrays"][spec.path].get("missing"):
            return
        status = self.rows["status"].to_numpy(dtype=object, copy=True)
        for record in read_commits(self.location, spec, range(self.meta.shards)):
            lacking = [row for row in (record or {}).get("missing", ()) if status[row] == OK]
            status[lacking] = MISSING
        self.rows["status"] = status

    def _choose(self, kind: str, name: str | None) -> ArraySpec:
        complete = self.artifact.summary["arrays"]
        there = [spec for spec in self.meta.arrays if spec.path in complete]
        return choice.choose(there, kind, name, str(self.location))
