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

from pipeline import artifact
from pipeline.config import LogMelConfig
from pipeline.errors import DigestMismatchError, StoreError
from pipeline.store import tables, topk, zarr_layout
from pipeline.store.quantisation import dequantise
from pipeline.store.schema import (
    CLIPS_FILE,
    OK,
    REJECTS_FILE,
    SCHEMA_VERSION,
    ArraySpec,
    frontend_digest,
    read_meta,
    rows_digest,
)

KINDS = ("spectrogram", "embedding")


class StoreReader:
    """A finished store: its rows and, shard by shard, its arrays. Safe to use from several threads.

    Args:
        folder: the store.
        frontend: digest (or its first 12 digits) of the spectrogram array to read, or the ``LogMelConfig``
            that it must come from.
        teacher: name or digest of the embedding array to read.
        manifest: digest of the manifest that the store must come from; None = any.

    Raises:
        MissingArtifactError: no finished store there.
        DigestMismatchError: another frontend, teacher, manifest or plan than asked for.
        StoreError: several arrays fit and none was chosen.

    Example:
        >>> reader = StoreReader(folder, teacher="aisfx")
        >>> reader.read_shard(0)["spectrogram"].shape
        (512, 64, 115)
    """

    def __init__(
        self,
        folder: Path,
        *,
        frontend: str | LogMelConfig | None = None,
        teacher: str | None = None,
        manifest: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.artifact = artifact.read(self.folder, run="ossicle embed")
        self.meta = read_meta(self.folder)
        if manifest is not None and manifest != self.meta.manifest_digest:
            raise DigestMismatchError(
                f"{folder} was embedded from another manifest",
                expected=manifest,
                got=self.meta.manifest_digest,
                run="ossicle embed",
            )
        self.rows: pandas.DataFrame = tables.read(self.folder / CLIPS_FILE)
        found = rows_digest(self.rows)
        if found != self.meta.rows_digest:
            raise DigestMismatchError(
                f"{self.folder / CLIPS_FILE} does not belong to this store",
                expected=self.meta.rows_digest,
                got=found,
                run=f"ossicle store verify {self.folder}",
            )
        wanted = frontend_digest(frontend) if isinstance(frontend, LogMelConfig) else frontend
        self._chosen: dict[str, ArraySpec] = {}
        self._asked = {"spectrogram": wanted, "embedding": teacher}
        self._arrays: dict[tuple[str, str], zarr.Array] = {}
        self._lock = threading.Lock()
        for kind, name in self._asked.items():
            if name is not None:
                self._chosen[kind] = self._choose(kind, name)

    def select(self, frontend: str | LogMelConfig | None = None, teacher: str | None = None) -> StoreReader:
        """Return a reader of the same store bound to other arrays; None keeps what was chosen."""
        return StoreReader(
            self.folder,
            frontend=frontend if frontend is not None else self._asked["spectrogram"],
            teacher=teacher if teacher is not None else self._asked["embedding"],
        )

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
        """The embedding array that is read."""
        return self.spec("embedding")

    @property
    def shard_sizes(self) -> list[int]:
        """Rows of each shard, missing ones included."""
        return [stop - start for start, stop in map(self.meta.bounds, range(self.meta.shards))]

    @property
    def rejects(self) -> pandas.DataFrame:
        """``rejects.parquet``."""
        return tables.read(self.folder / REJECTS_FILE)

    def spec(self, kind: str) -> ArraySpec:
        """Return the array of ``kind`` that is read: the chosen one, or the only one."""
        if kind not in self._chosen:
            self._chosen[kind] = self._choose(kind, None)
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

        The spectrogram is float16 (rows, mels, frames), the embedding (rows, dim) as stored. Missing rows
        are NaN.

        Args:
            shard: its index.
            arrays: kinds to read.
            out: kind to a C-contiguous array of that shape and dtype to read into.

        Raises:
            StoreError: a checksum does not match or the shard's file is gone.
        """
        start, stop = self.meta.bounds(shard)
        return {kind: self._read(kind, shard, start, stop, (out or {}).get(kind)) for kind in arrays}

    def _read(self, kind: str, shard: int, start: int, stop: int, out: numpy.ndarray | None) -> numpy.ndarray:
        spec = self.spec(kind)
        if spec.dtype == "uint8":
            codes, scale, offset = (
                self._member(spec, name, shard, start, stop, None) for name in zarr_layout.members(spec)
            )
            values = dequantise(codes, scale, offset)
            if out is None:
                return values
            out[...] = values
            return out
        if spec.top_k is not None:
            kept, indices, tail = (
                self._member(spec, name, shard, start, stop, None) for name in zarr_layout.members(spec)
            )
            values = topk.decode(kept, indices, tail, spec.row_shape[0])
            if out is None:
                return values
            out[...] = values
            return out
        return self._member(spec, spec.data_name, shard, start, stop, out)

    def _member(
        self, spec: ArraySpec, name: str, shard: int, start: int, stop: int, out: numpy.ndarray | None
    ) -> numpy.ndarray:
        array = self._open(spec, name)
        file = self.folder / zarr_layout.shard_file(spec, name, shard)
        mend = f"ossicle store verify {self.folder} --repair, then ossicle embed"
        if not file.is_file():
            # Zarr reads an absent shard as its fill value; here that would pass for rejected rows.
            raise StoreError(f"shard {shard} of {spec.path}/{name} is missing", expected=str(file), run=mend)
        buffer = out
        if buffer is None:
            buffer = numpy.empty((stop - start, *array.shape[1:]), dtype=array.dtype)
        try:
            target: Any = default_buffer_prototype().nd_buffer.from_numpy_array(buffer)
            array.get_basic_selection(slice(start, stop), out=target)
        except (ValueError, RuntimeError, OSError) as error:
            raise StoreError(
                f"shard {shard} of {spec.path}/{name} cannot be read: {error}", run=mend
            ) from error
        return buffer

    def _open(self, spec: ArraySpec, name: str) -> zarr.Array:
        key = (spec.path, name)
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = self._opened(spec, name)
            return self._arrays[key]

    def _opened(self, spec: ArraySpec, name: str) -> zarr.Array:
        found: Any = zarr.open_group(self.folder / spec.path, mode="r").attrs.asdict().get("ossicle", {})
        if found.get("digest") != spec.digest or found.get("schema_version") != SCHEMA_VERSION:
            raise DigestMismatchError(
                f"{spec.path} holds another array than store.json says",
                expected=f"digest {spec.digest}, schema version {SCHEMA_VERSION}",
                got=f"digest {found.get('digest')}, schema version {found.get('schema_version')}",
                run=f"ossicle store verify {self.folder} --repair, then ossicle embed",
            )
        array = zarr_layout.open_array(self.folder / spec.path / name)
        dtype, row_shape = zarr_layout.members(spec)[name]
        if array.shape != (self.meta.rows, *row_shape) or array.dtype != numpy.dtype(dtype):
            raise StoreError(
                f"{spec.path}/{name} has another form than store.json says",
                expected=f"{dtype} {(self.meta.rows, *row_shape)}",
                got=f"{array.dtype} {array.shape}",
                run="move the store away and run ossicle embed again",
            )
        return array

    def _choose(self, kind: str, name: str | None) -> ArraySpec:
        complete = self.artifact.summary["arrays"]
        there = [spec for spec in self.meta.arrays if spec.kind == kind and spec.path in complete]
        fitting = [
            spec
            for spec in there
            if name is None or name == spec.name or (len(name) >= 12 and spec.digest.startswith(name))
        ]
        if len(fitting) == 1:
            return fitting[0]
        listed = ", ".join(f"{spec.name} {spec.digest[:12]}" for spec in there) or "none"
        if name is not None and not fitting:
            raise DigestMismatchError(
                f"the store in {self.folder} has no {kind} array for {name[:64]}",
                expected=name,
                got=listed,
                run="ossicle embed, with this recipe",
            )
        raise StoreError(
            f"{len(fitting)} {kind} arrays fit, one is needed",
            expected=f"one {kind} array" + (f" called {name}" if name else ""),
            got=listed,
            run="choose one by its digest" if fitting else "ossicle embed",
        )
