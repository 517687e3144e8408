"""Stores of known content, written with the real writer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy
import pandas

from pipeline.config import LogMelConfig
from pipeline.store.schema import ArraySpec, StoreMeta, embedding_spec, spectrogram_spec
from pipeline.store.writer import StoreWriter

FRONTEND = LogMelConfig(mels=6)
FRAMES, DIM = 5, 7
TEACHER_DIGEST = "ab" * 32


@dataclass(frozen=True)
class Content:
    """What went into a store; rejected rows hold numbers here and NaN in the store."""

    rows: pandas.DataFrame
    log_mel: numpy.ndarray
    embedding: numpy.ndarray
    rejected: tuple[int, ...]

    def rejects(self, start: int, stop: int) -> list[dict[str, object]]:
        """Return the rejects of rows ``start`` to ``stop``."""
        return [
            {
                "row": row,
                "path": f"clip{row}.wav",
                "clip_id": f"c{row}",
                "reason": "silent",
                "problem": "peak 0",
            }
            for row in self.rejected
            if start <= row < stop
        ]


def content(rows: int, rejected: tuple[int, ...] = (), seed: int = 0) -> Content:
    """Return ``rows`` rows of random numbers, every fifth of them for validation."""
    generator = numpy.random.default_rng(seed)
    table = pandas.DataFrame(
        {
            "row": numpy.arange(rows),
            "key": [f"{seed:x}-{row:032x}" for row in range(rows)],
            "split": ["validation" if row % 5 == 4 else "train" for row in range(rows)],
            "label": [None if row % 3 else "bell" for row in range(rows)],
            "start_seconds": numpy.arange(rows) / 3,
        }
    )
    log_mel = generator.normal(-6, 3, (rows, FRONTEND.mels, FRAMES)).astype(numpy.float16)
    embedding = generator.standard_normal((rows, DIM)).astype(numpy.float32)
    return Content(table, log_mel, embedding, rejected)


def specs(
    spectrogram: Literal["float16", "uint8"] = "float16", embedding: Literal["float16", "float32"] = "float32"
) -> tuple[ArraySpec, ArraySpec]:
    """Return the two arrays of these stores."""
    return (
        spectrogram_spec(FRONTEND, FRAMES, spectrogram),
        embedding_spec("linear", TEACHER_DIGEST, DIM, embedding, licence="CC0-1.0"),
    )


def meta(arrays: tuple[ArraySpec, ...], shard_rows: int, chunk_rows: int) -> StoreMeta:
    """Return a description of a store of ``arrays``."""
    return StoreMeta(
        name="made", manifest_digest="cd" * 32, shard_rows=shard_rows, chunk_rows=chunk_rows, arrays=arrays
    )


def write_pending(writer: StoreWriter, made: Content, shards: list[int] | None = None) -> None:
    """Write ``shards`` (default: those pending) with all their arrays."""
    for shard in writer.pending() if shards is None else shards:
        start, stop = writer.meta.bounds(shard)
        values = {"spectrogram": made.log_mel[start:stop], "embedding": made.embedding[start:stop]}
        arrays = {spec.path: values[spec.kind] for spec in writer.meta.arrays}
        writer.write_shard(shard, arrays, made.rejects(start, stop))


def make_store(
    folder: Path,
    made: Content,
    arrays: tuple[ArraySpec, ...] | None = None,
    shard_rows: int = 32,
    chunk_rows: int = 8,
) -> Path:
    """Write a finished store of ``made``."""
    with StoreWriter.create(folder, made.rows, meta(arrays or specs(), shard_rows, chunk_rows)) as writer:
        write_pending(writer, made)
        writer.finish(config={}, inputs={})
    return folder


def file_bytes(folder: Path) -> dict[str, bytes]:
    """Return every file of a store that must not depend on its history: not the marker's time, not the locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "artifact.json" and not path.name.startswith(".lock")
    }
