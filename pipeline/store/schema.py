"""What a store holds: its arrays, their digests, and how rows fall into shards.

::

    <store>/store.json                          this module's ``StoreMeta``
    <store>/clips.parquet                       the plan's rows + ``status`` (pending, ok, rejected)
    <store>/rejects.parquet                     path, clip_id, row, reason, problem
    <store>/spectrogram/<digest12>.zarr/log_mel     (n, mels, frames) float16; or uint8 + scale, offset
    <store>/embedding/<digest12>.zarr/embedding     (n, dim) float32 or float16
    <store>/commits/<digest12>/<shard>.json     SHA-256 of the shard's files, rows, rejects
    <store>/artifact.json                       marker of a finished artifact, written last
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import pandas
from pydantic import Field, ValidationError

from pipeline.config import LogMelConfig, Section, digest
from pipeline.errors import MissingArtifactError, StoreError

SCHEMA_VERSION = 1
STORE_FILE = "store.json"
CLIPS_FILE = "clips.parquet"
REJECTS_FILE = "rejects.parquet"
COMMITS_FOLDER = "commits"
REJECT_COLUMNS = ("path", "clip_id", "row", "reason", "problem")
NO_ROW = -1
PENDING, OK, REJECTED = "pending", "ok", "rejected"

Kind = Literal["spectrogram", "embedding"]
DATA_NAMES: dict[str, str] = {"spectrogram": "log_mel", "embedding": "embedding"}


def frontend_digest(config: LogMelConfig) -> str:
    """Return the digest that names the spectrogram array: every constant of the log-mel frontend."""
    return digest({"frontend": "log_mel/1", **config.model_dump(mode="json")})


class ArraySpec(Section):
    """One array of a store: what made it, and the type and shape of a row.

    Attributes:
        kind: ``spectrogram`` or ``embedding``.
        digest: of the frontend (every constant) or of the teacher (code, weights, windowing, dtype).
        name: of the frontend (``log_mel``) or of the teacher.
        dtype: as stored. ``uint8`` is for spectrograms alone: value = offset + scale * code, one pair a row.
        row_shape: ``(mels, frames)`` or ``(dim,)``.
        config: the constants behind the digest, for readers.
        licence: of the teacher, carried on to everything distilled from it.
    """

    kind: Kind
    digest: str = Field(min_length=12, pattern=r"^[0-9a-f]+$")
    name: str
    dtype: Literal["float16", "float32", "uint8"]
    row_shape: tuple[int, ...]
    config: dict[str, Any] = Field({})
    licence: str = ""

    @property
    def path(self) -> str:
        """The Zarr group's folder inside the store, also the key of ``StoreWriter.write_shard``."""
        return f"{self.kind}/{self.digest[:12]}.zarr"

    @property
    def data_name(self) -> str:
        """The data array's name inside the group."""
        return DATA_NAMES[self.kind]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as a loader holds it (uint8 is decoded to float16)."""
        values = 1
        for length in self.row_shape:
            values *= length
        return values * (4 if self.dtype == "float32" else 2)


def spectrogram_spec(
    config: LogMelConfig, frames: int, dtype: Literal["float16", "uint8"] = "float16"
) -> ArraySpec:
    """Return the spec of the student's log-mel array for windows of ``frames`` frames."""
    return ArraySpec(
        kind="spectrogram",
        digest=frontend_digest(config),
        name="log_mel",
        dtype=dtype,
        row_shape=(config.mels, frames),
        config=config.model_dump(mode="json"),
    )


def embedding_spec(
    name: str,
    digest: str,
    dim: int,
    dtype: Literal["float16", "float32"] = "float32",
    config: dict[str, Any] | None = None,
    licence: str = "",
) -> ArraySpec:
    """Return the spec of a teacher's embedding array."""
    return ArraySpec(
        kind="embedding",
        digest=digest,
        name=name,
        dtype=dtype,
        row_shape=(dim,),
        config=config or {},
        licence=licence,
    )


class StoreMeta(Section):
    """``store.json``. ``rows`` and ``rows_digest`` are filled in by ``StoreWriter.create``."""

    schema_version: int = SCHEMA_VERSION
    name: str
    manifest_digest: str
    windowing: dict[str, Any] = Field(
        {}, description="window length, offsets' seed, views: what fixed the rows"
    )
    shard_rows: int = Field(512, ge=1)
    chunk_rows: int = Field(64, ge=1)
    rows: int = 0
    rows_digest: str = ""
    arrays: tuple[ArraySpec, ...] = ()

    @property
    def shards(self) -> int:
        """Number of shards; the last may be short."""
        return -(-self.rows // self.shard_rows)

    def bounds(self, shard: int) -> tuple[int, int]:
        """Return first row and end row of ``shard``."""
        if not 0 <= shard < self.shards:
            raise StoreError(f"no shard {shard}", expected=f"0 to {self.shards - 1}", got=shard)
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows)

    def find(self, path: str) -> ArraySpec:
        """Return the array at ``path`` (``ArraySpec.path``)."""
        for spec in self.arrays:
            if spec.path == path:
                return spec
        raise StoreError(
            f"the store has no array {path!r}", expected=[spec.path for spec in self.arrays], got=path
        )


def read_meta(folder: Path) -> StoreMeta:
    """Return ``store.json`` of ``folder``.

    Raises:
        MissingArtifactError: there is none.
        StoreError: unreadable, or written by another schema version.
    """
    path = Path(folder) / STORE_FILE
    if not path.is_file():
        raise MissingArtifactError(f"no store in {folder}", expected=str(path), run="ossicle embed")
    try:
        meta = StoreMeta.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} is not a store's description: {error}",
            run="move the folder away and run ossicle embed again",
        ) from error
    if meta.schema_version != SCHEMA_VERSION:
        raise StoreError(
            f"{folder} was written by another version of Ossicle",
            expected=f"schema version {SCHEMA_VERSION}",
            got=f"schema version {meta.schema_version}",
            run="move the folder away and run ossicle embed again",
        )
    return meta


def rows_digest(rows: pandas.DataFrame) -> str:
    """Return the SHA-256 of the plan's table: every column but ``status``, as CSV."""
    plan = rows.drop(columns=[column for column in ("status",) if column in rows.columns])
    return hashlib.sha256(plan.to_csv(index=False).encode()).hexdigest()


def keys_digest(keys: pandas.Series) -> str:
    """Return the SHA-256 of a shard's content keys in order; it ties a shard's file to its rows."""
    return hashlib.sha256("\n".join(map(str, keys)).encode()).hexdigest()
