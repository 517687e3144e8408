"""A store with an array of every kind that there is."""

from __future__ import annotations

from pathlib import Path

import numpy

from pipeline.store.schema import ArraySpec, output_spec, spectrogram_spec
from pipeline.store.writer import StoreWriter
from tests.store import made_store

ROWS, REJECTED = 45, (3, 44)
CLASSES, TOP_K, TIME = 11, 4, 6
TEACHER = made_store.TEACHER_DIGEST


def specs() -> tuple[ArraySpec, ...]:
    """Return one array of each kind and stored type."""
    narrow = made_store.FRONTEND.model_copy(update={"min_hz": 60.0})
    dim = made_store.DIM
    return (
        *made_store.specs(),
        spectrogram_spec(narrow, made_store.FRAMES, "uint8"),
        output_spec("linear", TEACHER, "logits", (CLASSES,), "float16"),
        output_spec("linear", TEACHER, "logits", (CLASSES,), "float32", top_k=TOP_K),
        output_spec("linear", TEACHER, "frames", (TIME, dim), "float16", frame_rate_hz=2.5),
        output_spec("linear", TEACHER, "layer.2", (dim,), "float32"),
        output_spec("linear", TEACHER, "layer.0", (dim,), "float16"),
    )


def values(rows: int = ROWS) -> dict[str, numpy.ndarray]:
    """Return array path to what is written; rejected rows hold numbers too."""
    generator = numpy.random.default_rng(7)
    return {
        spec.path: generator.normal(-1, 3, (rows, *spec.row_shape)).astype(numpy.float32) for spec in specs()
    }


def make_store(folder: Path | str, shard_rows: int = 16) -> Path:
    """Write the finished store."""
    made = made_store.content(ROWS, REJECTED)
    content = values()
    with StoreWriter.create(folder, made.rows, made_store.meta(specs(), shard_rows, 8)) as writer:
        for shard in writer.pending():
            start, stop = writer.meta.bounds(shard)
            arrays = {path: one[start:stop] for path, one in content.items()}
            writer.write_shard(shard, arrays, made.rejects(start, stop))
        writer.finish(config={}, inputs={})
    return Path(folder)
