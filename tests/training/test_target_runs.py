"""Whole runs with every kind of target, head and relation: resumed bit-equal, saved, and better than at random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline import artifact
from pipeline.errors import ConfigError, TrainingError
from pipeline.store.combination import Combination
from pipeline.store.reader import StoreReader
from pipeline.store.schema import embedding_spec
from pipeline.store.writer import StoreWriter
from pipeline.training.job import Job, run_job
from pipeline.training.loop import TrainingStopped
from tests.training.small_store import (
    TEACHER_DIGEST,
    StopAt,
    losses,
    small_job,
    small_recipe,
    weights,
    write_store,
)

SECOND_DIGEST, SECOND_DIM = "cd" * 32, 5
COMPRESSION = {"targets.compression": "linear", "targets.head": "none", "targets.transform": "none"}
VARIANTS: dict[str, dict[str, Any]] = {
    "soft whitening": {"targets.whiten_power": 0.25, "targets.shrinkage": 0.1},
    "random projection": {"targets.transform": "random", "targets.seed": 3},
    "mlp head": {"targets.head": "mlp", "targets.head_hidden": 16},
    "hint": {"targets.head": "hint", "loss.feature_kind": "mse"},
    "compression": {**COMPRESSION, "loss.distance": 1.0, "train.ema_decay": 0.8},
    "compression, mlp": {**COMPRESSION, "targets.compression": "mlp", "targets.compression_hidden": 8},
    "memory": {"relations.queue_rows": 50, "loss.distance": 1.0, "loss.cosine": 2.0, "train.ema_decay": 0.8},
    "anchors": {"loss.anchor": 1.0, "relations.anchors": 5},
    "anchor rows": {"loss.anchor": 1.0, "relations.anchors": 9, "relations.anchor_kind": "rows"},
    "neighbours": {"loss.neighbour": 1.0, "relations.neighbours": 4, "relations.queue_rows": 40},
    "teacher space": {"loss.anchor": 1.0, "loss.neighbour": 1.0, "relations.space": "teacher",
                      "relations.anchors": 4, "loss.feature": 0.0},
}  # fmt: skip
HEADS: dict[str, dict[str, Any]] = {
    "heads": {"targets.fusion": "heads", "loss.distance": 1.0},
    "heads, weighted": {"targets.fusion": "heads", "targets.teacher_weights": [1.0, 3.0], "targets.head": "mlp",
                        "targets.head_hidden": 8},
    "heads, compressed, remembered": {**COMPRESSION, "targets.fusion": "heads", "loss.cosine": 1.0,
                                      "relations.queue_rows": 30, "loss.anchor": 1.0, "relations.anchors": 4},
    "fusion learnt from labels": {**COMPRESSION, "targets.fusion": "concat"},
}  # fmt: skip


def two_teachers(folder: Path, recipe: Any) -> Path:
    """Add a second teacher of another width to the small store: a fixed map of the first one's rows."""
    write_store(folder, recipe)
    reader = StoreReader(folder)
    first = [reader.read_shard(shard, ("embedding",))["embedding"] for shard in range(reader.meta.shards)]
    matrix = np.random.default_rng(8).standard_normal((first[0].shape[1], SECOND_DIM))
    spec = embedding_spec("second", SECOND_DIGEST, SECOND_DIM, "float32", licence="CC0-1.0")
    meta = reader.meta.model_copy(update={"arrays": (*reader.meta.arrays, spec)})
    with StoreWriter.create(folder, reader.rows, meta) as writer:
        for shard in writer.pending():
            writer.write_shard(shard, {spec.path: np.tanh(first[shard] @ matrix).astype(np.float32)}, [])
        writer.finish(config={}, inputs={})
    return folder


def job_of(store: Path, folder: Path, recipe: Any) -> Job:
    job = small_job(store, folder, recipe)
    targets = recipe.targets
    if not targets.teachers:
        return job
    inputs = {**job.inputs, "teacher.0": TEACHER_DIGEST, "teacher.1": SECOND_DIGEST}
    combined = Combination.of(targets, inputs)
    reader = StoreReader(store, teacher=combined)
    return Job(job.run, store, folder, job.config, {**inputs, "teacher": reader.embedding.digest})


def recipe_of(changes: dict[str, Any], artifacts: Path) -> Any:
    two = {"targets.teachers": ["linear", "second"]} if "targets.fusion" in changes else {}
    return small_recipe(**{"paths.artifacts": str(artifacts), "train.steps": 14, **two, **changes})


@pytest.mark.parametrize("variant", VARIANTS | HEADS)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, variant: str) -> None:
    changes = (VARIANTS | HEADS)[variant]
    recipe = recipe_of(changes, tmp_path)
    store = tmp_path / "store"
    two_teachers(store, recipe) if "targets.fusion" in changes else write_store(store, recipe)
    whole = run_job(job_of(store, tmp_path / "whole", recipe))
    job = job_of(store, tmp_path / "parts", recipe)
    for step in (1, 9):
        stop = StopAt(step)
        with pytest.raises(TrainingStopped):
            run_job(job, on_progress=stop.progress, should_stop=stop)
    parts = run_job(job)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert parts.summary == whole.summary
    assert all(np.isfinite(v) for v in whole.summary.values() if isinstance(v, float))


def test_what_a_run_holds(tmp_path: Path) -> None:
    """Heads that are linear maps keep their file, which others read; others have one of their own; none has none."""
    for head, file in (("linear", "projector"), ("mlp", "head"), ("hint", "head"), ("none", None)):
        recipe = recipe_of({"targets.head": head, "targets.components": 8, "train.steps": 2}, tmp_path)
        if head == "none":
            recipe = recipe_of(
                {"targets.head": head, "targets.components": 8, "train.steps": 2, "student.embedding_dim": 8},
                tmp_path,
            )
        store = write_store(tmp_path / f"store-{head}", recipe)
        folder = tmp_path / head
        run_job(job_of(store, folder, recipe))
        found = {path.stem for path in folder.glob("*.safetensors")} & {"projector", "head"}
        assert found == ({file} if file else set()), head
    recipe = recipe_of({**COMPRESSION, "train.steps": 2}, tmp_path)
    store = write_store(tmp_path / "store-compressed", recipe)
    width = run_job(job_of(store, tmp_path / "compressed", recipe)).summary["embedding_dim"]
    kept = load_file(tmp_path / "compressed" / "compression.safetensors")
    assert kept["transforms.0.weight"].shape == (width, 12)
    assert kept["classifiers.0.weight"].shape == (3, width)


def test_an_impossible_head_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of({"targets.head": "none"}, tmp_path)
    store = write_store(tmp_path / "store", recipe)
    with pytest.raises(ConfigError, match="widths differ"):
        run_job(job_of(store, tmp_path / "run", recipe))


def test_compression_without_labels_is_refused(tmp_path: Path) -> None:
    for column, problem, kind in (
        ("none_such", "names no column", ConfigError),
        ("split", "two classes", TrainingError),
    ):
        recipe = recipe_of({**COMPRESSION, "train.label_column": column}, tmp_path)
        store = write_store(tmp_path / f"store-{column}", recipe)
        with pytest.raises(kind, match=problem):
            run_job(job_of(store, tmp_path / f"run-{column}", recipe))


def test_relations_are_made_once_for_all_runs(tmp_path: Path) -> None:
    recipe = recipe_of({"loss.neighbour": 1.0, "relations.neighbours": 4, "train.steps": 2}, tmp_path)
    store = write_store(tmp_path / "store", recipe)
    runs = [run_job(small_job(store, tmp_path / f"run-{seed}", recipe, seed)) for seed in (0, 1)]
    (made,) = (tmp_path / "relations").iterdir()
    found = artifact.read(made)
    assert [run.summary["relations"] for run in runs] == [found.digest] * 2
    assert found.summary["rows"] == 159
    neighbours = load_file(made / "relations.safetensors")["neighbours"]
    training = torch.from_numpy((StoreReader(store).rows["split"] == "train").to_numpy(dtype=bool, copy=True))
    training[11] = False
    assert (neighbours[~training] == -1).all()
    assert training[neighbours[training].long()].all()


def test_the_queue_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    recipe = recipe_of({**VARIANTS["memory"], "train.steps": 6}, tmp_path)
    store = write_store(tmp_path / "store", recipe)
    stop = StopAt(4)
    with pytest.raises(TrainingStopped):
        run_job(job_of(store, tmp_path / "run", recipe), on_progress=stop.progress, should_stop=stop)
    held = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert int(held["model.objective.relations.queue.count"]) == 64
    assert held["model.objective.relations.queue.embeddings"].shape[0] == 50


def test_terms_of_every_teacher_are_logged(tmp_path: Path) -> None:
    recipe = recipe_of({**HEADS["heads"], "train.steps": 20}, tmp_path)
    store = two_teachers(tmp_path / "store", recipe)
    run_job(job_of(store, tmp_path / "run", recipe))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if "loss" in line)
    assert {"feature", "feature_0", "feature_1", "distance", "distance_0", "distance_1"} <= logged.keys()
    assert logged["loss"] == pytest.approx(logged["feature"] + logged["distance"], rel=1e-4)
    side_by_side = recipe_of({"targets.fusion": "concat", "train.steps": 20}, tmp_path)
    summary = run_job(job_of(store, tmp_path / "concat", side_by_side)).summary
    assert summary["targets"]["target_dim"] == 8 + SECOND_DIM
    assert {key for key in summary if key.startswith("validation_feature")} == {"validation_feature"}
