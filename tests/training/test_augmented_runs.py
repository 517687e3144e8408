"""Runs that use every key of [sampling] and [augment]: stopped and resumed bit-equal; what reaches the batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.config import Recipe
from pipeline.data.mixing import Mix, mixed_loss
from pipeline.errors import ConfigError
from pipeline.store.reader import StoreReader
from pipeline.store.schema import StoreMeta, embedding_spec, spectrogram_spec
from pipeline.store.writer import StoreWriter
from pipeline.training.controls import LabelObjective, LabelTable
from pipeline.training.distributed import Group
from pipeline.training.job import augmentation, loader_of, run_job
from pipeline.training.loop import Progress, TrainingStopped
from pipeline.training.rows import usable
from tests.training.small_store import (
    FRAMES,
    TEACHER_DIGEST,
    TEACHER_DIM,
    losses,
    small_job,
    small_recipe,
    weights,
)

ROWS = 120
EVERYTHING: dict[str, Any] = {
    "sampling.balance": "clusters", "sampling.clusters": 4, "sampling.max_repeats": 6.0,
    "sampling.dataset_weights": {"a": 1.0, "b": 2.0}, "sampling.view_weights": {"clean": 1.0, "augmented:device": 1.0},
    "sampling.draws": "stratified",
    "augment.gain_db": 6, "augment.freq_mixstyle_probability": 0.5, "augment.mixup_alpha": 0.3,
    "augment.mixup_probability": 0.7, "augment.view_target": "clean", "augment.roll_per": "clip",
    "augment.mask_fill": -11.5, "train.steps": 14, "targets.components": 6,
}  # fmt: skip


def views_store(folder: Path, recipe: Recipe) -> Path:
    """Write clean rows and, after each, a view of it through a device with another embedding."""
    generator = np.random.default_rng(5)
    number = np.arange(ROWS)
    table = pd.DataFrame({
        "row": number, "key": [f"{i:064x}" for i in number],
        "split": ["validation" if i // 2 % 5 == 0 else "train" for i in number],
        "label": "", "dataset": ["a" if i // 2 % 3 else "b" for i in number],
        "clip_id": [f"c{i // 2}" for i in number], "start_seconds": 0.0,
        "view": ["augmented" if i % 2 else "clean" for i in number],
        "view_parameters": [json.dumps({"device": "d.wav", "gain_db": 0.0}) if i % 2 else "" for i in number],
    })  # fmt: skip
    arrays = (
        spectrogram_spec(recipe.embed.frontend, FRAMES),
        embedding_spec(recipe.embed.teacher.name, TEACHER_DIGEST, TEACHER_DIM, licence="CC0-1.0"),
    )
    log_mel = generator.normal(-6, 3, (ROWS, recipe.embed.frontend.mels, FRAMES))
    teacher = generator.standard_normal((ROWS, TEACHER_DIM))
    meta = StoreMeta(name="views", manifest_digest="0" * 64, shard_rows=32, chunk_rows=16, arrays=arrays)
    with StoreWriter.create(folder, table, meta) as writer:
        for shard in writer.pending():
            start, stop = writer.meta.bounds(shard)
            writer.write_shard(
                shard, {arrays[0].path: log_mel[start:stop], arrays[1].path: teacher[start:stop]}, []
            )
        writer.finish(config={}, inputs={})
    return folder


def stopped_and_resumed(recipe: Recipe, store: Path, folder: Path) -> None:
    job = small_job(store, folder, recipe)
    now = 0

    def progress(at: Progress) -> None:
        nonlocal now
        now = at.step

    for wanted in (1, 6, 9):
        with pytest.raises(TrainingStopped):
            run_job(job, on_progress=progress, should_stop=lambda wanted=wanted: now == wanted)
    run_job(job)


@pytest.mark.parametrize(
    "more", [{}, {"loss.distance": 1.0, "loss.angle": 2.0, "sampling.draws": "independent"}]
)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, more: dict[str, Any]) -> None:
    recipe = small_recipe(**{**EVERYTHING, "paths.artifacts": str(tmp_path / "artifacts"), **more})
    store = views_store(tmp_path / "store", recipe)
    run_job(small_job(store, tmp_path / "whole", recipe))
    stopped_and_resumed(recipe, store, tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert len(list((tmp_path / "artifacts" / "clusters").glob("*/clusters.safetensors"))) == 1


def test_the_recipe_reaches_the_batches(tmp_path: Path) -> None:
    recipe = small_recipe(**{**EVERYTHING, "paths.artifacts": str(tmp_path / "artifacts")})
    store = views_store(tmp_path / "store", recipe)
    reader = StoreReader(store)
    loader = loader_of(recipe, reader, usable(reader, "train"), Group())
    batches = list(loader.one_epoch())
    rows = np.concatenate([batch.index.numpy() for batch in batches])
    targets = np.concatenate([batch.target_index.numpy() for batch in batches])
    np.testing.assert_array_equal(targets, rows // 2 * 2)
    assert np.bincount(rows).max() <= 6 + 1
    assert (rows % 2).mean() == pytest.approx(0.5, abs=0.15)
    of_b = (reader.rows["dataset"].to_numpy()[rows] == "b").mean()
    assert of_b == pytest.approx(2 / 3, abs=0.1)
    change = augmentation(recipe, -6.0, 3.0)
    assert batches[0].spectrogram is not None
    made = [change(batches[0].spectrogram.float(), step) for step in range(12)]
    assert {one.mix is None for one in made} == {True, False}
    assert any((one.log_mel == -11.5).any() for one in made)


def test_labels_of_mixed_clips_are_mixed_by_the_same_share() -> None:
    codes = np.array([0, 2, 1, 2, 0, 1])
    table = LabelTable(["a", "b", "c"], codes, np.ones(6, dtype=bool))
    objective = LabelObjective(4, table)
    embedding, index = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    mix = Mix(torch.tensor([3, 4, 5, 0, 1, 2]), 0.7)
    loss, terms = mixed_loss(objective, embedding, index, torch.zeros(6, 1), mix)
    hot = torch.nn.functional.one_hot(torch.from_numpy(codes), 3).float()
    labels = 0.7 * hot + 0.3 * hot[mix.partners]
    by_hand = -(labels * objective.head(embedding).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(terms["cross_entropy"], by_hand)


def test_labels_are_mixed_as_losses_and_never_as_embeddings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leaves labels and logits whole"):
        small_recipe(**{
            "augment.mixup_alpha": 0.3, "augment.mixup_target": "embedding", "train.control": "labels",
        })  # fmt: skip
