"""Logits added to a store of ``small_store``, with the real writer: of the labels' classes, or of many unnamed ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.store.reader import StoreReader
from pipeline.store.schema import ArraySpec, output_spec
from pipeline.store.writer import StoreWriter
from pipeline.training.job import Job
from tests.training.small_store import CLASSES, TEACHER_DIGEST, TEACHER_DIM, small_job


def add_logits(
    folder: Path,
    recipe: Recipe,
    classes: int = len(CLASSES),
    top_k: int | None = None,
    dtype: Any = "float32",
) -> tuple[ArraySpec, np.ndarray]:
    """Add logits that are a linear function of the teacher's embedding; return their array and all of them."""
    names = {"classes": list(CLASSES)} if classes == len(CLASSES) else {}
    spec = output_spec(
        recipe.embed.teacher.name, TEACHER_DIGEST, "logits", (classes,), dtype, names, "CC0-1.0", top_k=top_k
    )
    reader = StoreReader(folder, teacher=TEACHER_DIGEST)
    shards = [reader.read_shard(shard, ("embedding",))["embedding"] for shard in range(reader.meta.shards)]
    labels = reader.rows["label"].to_numpy(dtype=object)
    weight = np.random.default_rng(7).standard_normal((TEACHER_DIM, classes)) * 0.5
    made = (np.concatenate(shards) @ weight).astype(np.float32)
    # Row 11 is rejected; a labelled row's own class is the likeliest where it has a name.
    for row, label in enumerate(labels):
        if label in CLASSES and classes == len(CLASSES):
            made[row, CLASSES.index(label)] += 3.0
    marker = artifact.read(folder)
    complete = [one.digest for one in reader.meta.arrays]
    described = reader.meta.model_copy(update={"arrays": (spec,), "rows": 0, "rows_digest": ""})
    with StoreWriter.create(folder, reader.rows, described) as writer:
        for shard in writer.pending([spec.digest]):
            start, stop = writer.meta.bounds(shard)
            writer.write_shard(shard, {spec.path: np.nan_to_num(made[start:stop])}, [])
        writer.finish([*complete, spec.digest], config=marker.config, inputs=marker.inputs)
    return spec, made


def logits_job(store: Path, folder: Path, recipe: Recipe, spec: ArraySpec | None) -> Job:
    """Return a job whose inputs hold the logits' digest, as ``stages.locations`` gives it."""
    job = small_job(store, folder, recipe)
    return job if spec is None else replace(job, inputs={**job.inputs, "logits": spec.digest})
