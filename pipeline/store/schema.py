"""What a store holds: its arrays, their digests, and how rows fall into shards.

::

    <store>/store.json                          this module's ``StoreMeta``
    <store>/clips.parquet                       the plan's rows + ``status`` (pending, ok, rejected)
    <store>/rejects.parquet                     path, clip_id, row, reason, problem
    <store>/spectrogram/<digest12>.zarr/log_mel     (n, mels, frames) float16; or uint8 + scale, offset
    <store>/embedding/<digest12>.zarr/embedding     (n, dim) float32 or float16
    <store>/logits/<digest12>.zarr/logits           (n, classes); or values, indices (n, k) + tail (n): see topk
    <store>/frames/<digest12>.zarr/frames           (n, time, dim), evenly spaced at config's frame_rate_hz
    <store>/layer/<digest12>.zarr/layer             (n, dim), the time mean of one block's output
    <store>/commits/<digest12>/<shard>.json     SHA-256 of the shard's files, rows, rejects
    <store>/artifact.json                       marker of a finished artifact, written last
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal

import pandas
from pydantic import Field, ValidationError, model_validator

from pipeline.artifact import file_digest
from pipeline.config import LogMelConfig, Section, TeacherConfig, digest
from pipeline.errors import MissingArtifactError, StoreError
from pipeline.store.location import Location, Place, at

SCHEMA_VERSION = 1
STORE_FILE = "store.json"
CLIPS_FILE = "clips.parquet"
REJECTS_FILE = "rejects.parquet"
COMMITS_FOLDER = "commits"
REJECT_COLUMNS = ("path", "clip_id", "row", "reason", "problem")
NO_ROW = -1
PENDING, OK, REJECTED = "pending", "ok", "rejected"
_DIGEST_ROWS = 10_000
MISSING = "missing"  # to a reader alone: usable, but not in the array it has chosen

Kind = Literal["spectrogram", "embedding", "logits", "frames", "layer"]
KINDS: tuple[Kind, ...] = ("spectrogram", "embedding", "logits", "frames", "layer")
DATA_NAMES: dict[str, str] = {kind: kind for kind in KINDS} | {"spectrogram": "log_mel"}
DIMENSIONS: dict[str, tuple[str, ...]] = {
    "spectrogram": ("mel", "frame"),
    "embedding": ("dimension",),
    "logits": ("class",),
    "frames": ("frame", "dimension"),
    "layer": ("dimension",),
}


def frontend_digest(config: LogMelConfig) -> str:
    """Return the digest that names the spectrogram array: every constant of the log-mel frontend."""
    return digest({"frontend": "log_mel/1", **config.model_dump(mode="json")})


class ArraySpec(Section):
    """One array of a store: what made it, and the type and shape of a row.

    Attributes:
        kind: ``spectrogram``, or what a teacher gave: ``embedding``, ``logits``, ``frames``, ``layer``.
        digest: of the frontend (every constant); of the teacher (code, weights, windowing, dtype) for its
            embedding; of teacher, output, frame rate and top-k for its other outputs (``output_digest``).
        name: of the frontend (``log_mel``) or of the teacher.
        dtype: as stored. ``uint8`` is for spectrograms alone: value = offset + scale * code, one pair a row.
        row_shape: ``(mels, frames)``, ``(dim,)``, ``(classes,)`` (of top-k logits too) or ``(time, dim)``.
        config: the constants behind the digest, for readers. For outputs other than the embedding also
            ``teacher`` (its digest), ``output`` and, where they apply, ``frame_rate_hz`` and ``top_k``.
        licence: of the teacher, carried on to everything distilled from it.
    """

    kind: Kind
    digest: str = Field(min_length=12, pattern=r"^[0-9a-f]+$")
    name: str
    dtype: Literal["float16", "float32", "uint8"]
    row_shape: tuple[int, ...]
    config: dict[str, Any] = Field({})
    licence: str = ""

    @model_validator(mode="after")
    def _possible(self) -> ArraySpec:
        if len(self.row_shape) != len(DIMENSIONS[self.kind]) or min(self.row_shape, default=0) < 1:
            raise ValueError(
                f"a row of {self.kind} has dimensions {DIMENSIONS[self.kind]}, got {self.row_shape}"
            )
        if self.dtype == "uint8" and self.kind != "spectrogram":
            raise ValueError(f"uint8 is for spectrograms alone, not for {self.kind}")
        if self.top_k is not None and not 1 <= self.top_k < self.row_shape[0]:
            raise ValueError(
                f"top_k is 1 to {self.row_shape[0] - 1} for {self.row_shape[0]} classes, got {self.top_k}"
            )
        return self

    @property
    def path(self) -> str:
        """The Zarr group's folder inside the store, also the key of ``StoreWriter.write_shard``."""
        return f"{self.kind}/{self.digest[:12]}.zarr"

    @property
    def data_name(self) -> str:
        """The data array's name inside the group."""
        return "values" if self.top_k is not None else DATA_NAMES[self.kind]

    @property
    def output(self) -> str:
        """Which output of the teacher: ``embedding``, ``logits``, ``frames``, ``layer.N``; "" of a frontend."""
        return "" if self.kind == "spectrogram" else str(self.config.get("output", self.kind))

    @property
    def teacher_digest(self) -> str:
        """Digest of the teacher behind the array; "" of a frontend."""
        return "" if self.kind == "spectrogram" else str(self.config.get("teacher", self.digest))

    @property
    def top_k(self) -> int | None:
        """How many of a row's logits are kept; None = all, or no logits."""
        found = self.config.get("top_k") if self.kind == "logits" else None
        return None if found is None else int(found)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as a loader holds it (uint8 is decoded to float16, top-k to all classes)."""
        return math.prod(self.row_shape) * (4 if self.dtype == "float32" else 2)


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
    return output_spec(name, digest, "embedding", (dim,), dtype, config, licence)


def output_digest(
    teacher_digest: str, output: str, frame_rate_hz: float | None = None, top_k: int | None = None
) -> str:
    """Return the digest that names the array of a teacher's ``output``; a plain embedding's is the teacher's."""
    if output == "embedding":
        return teacher_digest
    return digest(
        {"teacher": teacher_digest, "output": output, "frame_rate_hz": frame_rate_hz, "top_k": top_k}
    )


def output_spec(
    name: str,
    teacher_digest: str,
    output: str,
    row_shape: tuple[int, ...],
    dtype: Literal["float16", "float32"] = "float32",
    config: dict[str, Any] | None = None,
    licence: str = "",
    *,
    frame_rate_hz: float | None = None,
    top_k: int | None = None,
) -> ArraySpec:
    """Return the spec of one output of a teacher; whatever the output, ``write_shard`` takes its full rows.

    Args:
        name: the teacher's.
        teacher_digest: ``Teacher.digest()``.
        output: ``embedding``, ``logits``, ``frames`` or ``layer.N``, as ``Teacher.embed`` names them.
        row_shape: ``(dim,)``, ``(classes,)`` or ``(time, dim)``, without the batch.
        dtype: as stored.
        config: further constants, for readers (``citation`` among them).
        licence: of the weights.
        frame_rate_hz: of pooled ``frames``; they need it.
        top_k: of ``logits``: how many are kept; None = all.

    Raises:
        StoreError: no such output, frames without their rate, or a key that the output does not take.
    """
    kind = output.split(".")[0]
    if kind not in KINDS[1:] or (kind == "layer") != ("." in output):
        raise StoreError("no such output", expected="embedding, logits, frames or layer.N", got=output)
    if (kind == "frames") != (frame_rate_hz is not None) or (top_k is not None and kind != "logits"):
        raise StoreError(
            f"{output} of {name} is not described",
            expected="frame_rate_hz for frames alone, top_k for logits alone",
            got=f"frame_rate_hz {frame_rate_hz}, top_k {top_k}",
        )
    extra: dict[str, Any] = {}
    if kind != "embedding":
        extra = {"teacher": teacher_digest, "output": output}
        extra |= {"frame_rate_hz": frame_rate_hz} if frame_rate_hz is not None else {}
        extra |= {"top_k": top_k} if top_k is not None else {}
    return ArraySpec(
        kind=kind,
        digest=output_digest(teacher_digest, output, frame_rate_hz, top_k),
        name=name,
        dtype=dtype,
        row_shape=row_shape,
        config={**(config or {}), **extra},
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
    asked: dict[str, str] = Field(
        {}, description="asked_digest of each recipe's teacher to the digest of what was built for it"
    )

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


def read_meta(place: Place | Location) -> StoreMeta:
    """Return ``store.json`` of the store at ``place``.

    Raises:
        MissingArtifactError: there is none.
        StoreError: unreadable, or written by another schema version.
    """
    location = at(place)
    try:
        content = location.read(STORE_FILE)
    except FileNotFoundError:
        expected = f"{location}/{STORE_FILE}"
        raise MissingArtifactError(
            f"no store in {location}", expected=expected, run="ossicle embed"
        ) from None
    return parse_meta(content, str(location))


def parse_meta(content: bytes, place: str) -> StoreMeta:
    """Return the description that ``store.json`` holds as ``content``; ``place`` is for messages."""
    try:
        meta = StoreMeta.model_validate_json(content)
    except (ValidationError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{place}/{STORE_FILE} is not a store's description: {error}",
            run="move the store away and run ossicle embed again",
        ) from error
    if meta.schema_version != SCHEMA_VERSION:
        raise StoreError(
            f"{place} was written by another version of Ossicle",
            expected=f"schema version {SCHEMA_VERSION}",
            got=f"schema version {meta.schema_version}",
            run="move the store away and run ossicle embed again",
        )
    return meta


def meta_bytes(meta: StoreMeta) -> bytes:
    """Return the content of ``store.json``."""
    return (meta.model_dump_json(indent=2) + "\n").encode()


def asked_digest(config: TeacherConfig) -> str:
    """Return the digest of what a recipe says of its teacher: name, options, number format, weights.

    Stage 2 finds the array that was made for a recipe by it, without building the teacher.

    Raises:
        MissingArtifactError: the weights file named by the recipe is not there, nor its digest.
    """
    weights = config.trust_sha256
    if weights is None and config.weights is not None:
        if not config.weights.is_file():
            raise MissingArtifactError(
                f"no weights file {config.weights}",
                run="give embed.teacher.weights its path, or embed.teacher.trust_sha256 its SHA-256",
            )
        weights = file_digest(config.weights)
    asked = config.model_dump(mode="json", include={"name", "options", "dtype"})
    return digest({**asked, "weights_sha256": weights})


def rows_digest(rows: pandas.DataFrame) -> str:
    """Return the SHA-256 of the plan's table: every column but ``status``, as CSV."""
    plan = rows.drop(columns=[column for column in ("status",) if column in rows.columns])
    found = hashlib.sha256()
    for first in range(
        0, max(1, len(plan)), _DIGEST_ROWS
    ):  # the CSV of a whole AudioSet would take gigabytes
        part = plan.iloc[first : first + _DIGEST_ROWS]
        found.update(part.to_csv(index=False, header=first == 0).encode())
    return found.hexdigest()


def keys_digest(keys: pandas.Series) -> str:
    """Return the SHA-256 of a shard's content keys in order; it ties a shard's file to its rows."""
    return hashlib.sha256("\n".join(map(str, keys)).encode()).hexdigest()
