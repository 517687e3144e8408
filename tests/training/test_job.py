"""Whole runs on a small real store: that they learn, and what the controls are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.loader import Batch
from pipeline.errors import ConfigError, StoreError, TrainingError
from pipeline.store.reader import StoreReader
from pipeline.students import build_student
from pipeline.students.saved import load_student, read_description
from pipeline.training import targets
from pipeline.training.job import LOCK_FILE, locked, run_job
from pipeline.training.loop import update
from pipeline.training.metrics import read_metrics
from pipeline.training.objective import DistilObjective
from pipeline.training.rows import pieces, usable
from pipeline.training.state import TrainingState
from tests.students.names import every_student
from tests.training.small_store import FRAMES, small_job, small_recipe, write_store


def test_a_run_learns_and_its_folder_is_complete(tmp_path: Path) -> None:
    recipe = small_recipe(**{"train.steps": 150, "train.validate_every": 50, "train.roll_frames": 0})
    store = write_store(tmp_path / "store", recipe, rows=600)
    done = run_job(small_job(store, tmp_path / "run", recipe))
    random = run_job(small_job(store, tmp_path / "random", small_recipe(**{"train.control": "random"})))
    first, *_, last = [r["loss"] for r in read_metrics(done.folder) if "loss" in r]
    assert last < 0.6 * first
    assert done.summary["validation_neighbour_overlap"] > random.summary["validation_neighbour_overlap"] + 0.1
    assert not done.summary["collapsed"]
    assert {p.name for p in done.folder.iterdir()} >= {
        "student.safetensors", "student.json", "projector.safetensors", "targets.safetensors",
        "checkpoint.safetensors", "metrics.jsonl", "artifact.json",
    }  # fmt: skip
    line = next(r for r in read_metrics(done.folder) if "loss" in r)
    assert {"step", "loss", "feature", "lr", "samples_per_second", "data_wait_share"} <= line.keys()


def test_what_is_saved_is_what_was_trained_with_the_stores_normalisation(tmp_path: Path) -> None:
    recipe = small_recipe(**{"train.steps": 8})
    store = write_store(tmp_path / "store", recipe)
    job = small_job(store, tmp_path / "run", recipe)
    summary = run_job(job).summary
    student, saved = load_student(job.folder), read_description(job.folder)
    rows = StoreReader(store).rows
    train = ((rows["status"] == "ok") & (rows["split"] == "train")).to_numpy()
    reader = StoreReader(store)
    everything = np.concatenate([reader.read_shard(i)["spectrogram"] for i in range(len(reader.shard_sizes))])
    assert saved.mean == pytest.approx(everything[train].astype(np.float64).mean(), rel=1e-6)
    assert saved.std == pytest.approx(everything[train].astype(np.float64).std(), rel=1e-6)
    assert saved.teacher is not None
    assert (saved.teacher.name, saved.teacher.licence) == ("linear", "CC0-1.0")
    transform = targets.load(job.folder / "targets.safetensors")
    assert transform.output_dim == 8
    held_out = torch.from_numpy(everything[(rows["split"] == "validation").to_numpy()]).float()
    with torch.no_grad():
        embedding = student(held_out).double().numpy()
    root = np.linalg.svd(embedding - embedding.mean(axis=0), compute_uv=False)
    share = root[root > 0] / root.sum()
    assert summary["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)


def test_the_random_control_is_the_start_of_the_trained_run(tmp_path: Path) -> None:
    recipe = small_recipe(**{"train.control": "random"})
    store = write_store(tmp_path / "store", recipe)
    job = small_job(store, tmp_path / "run", recipe, seed=5)
    done = run_job(job)
    torch.manual_seed(5)
    start = build_student(recipe.student, recipe.embed.frontend.mels)
    saved = load_student(job.folder).backbone.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in start.state_dict().items())
    assert done.summary["steps"] == 0
    assert read_description(job.folder).teacher is None
    assert not (job.folder / "projector.safetensors").exists()
    assert [r["step"] for r in read_metrics(job.folder)] == [0]


def test_the_labels_control_learns_labels_and_skips_rows_without(tmp_path: Path) -> None:
    recipe = small_recipe(**{"train.control": "labels", "train.steps": 80, "train.validate_every": 40})
    store = write_store(tmp_path / "store", recipe, rows=400)
    job = small_job(store, tmp_path / "run", recipe)
    summary = run_job(job).summary
    rows = StoreReader(store).rows
    chosen = (rows["status"] == "ok") & (rows["split"] == "train") & (rows["label"] != "")
    assert summary["labelled_rows"] == int(chosen.sum())
    assert json.loads((job.folder / "classes.json").read_text()) == ["bell", "knock", "rain"]
    assert summary["validation_accuracy"] > 0.6
    assert (job.folder / "classifier.safetensors").is_file()
    assert not (job.folder / "targets.safetensors").exists()


def test_labels_that_are_not_there_are_named(tmp_path: Path) -> None:
    recipe = small_recipe(**{"train.control": "labels", "train.label_column": "labell"})
    store = write_store(tmp_path / "store", recipe)
    with pytest.raises(ConfigError, match="labell") as raised:
        run_job(small_job(store, tmp_path / "run", recipe))
    assert "label" in str(raised.value.expected)
    constant = small_recipe(**{"train.control": "labels", "train.label_column": "split"})
    with pytest.raises(TrainingError, match="two classes"):
        run_job(small_job(store, tmp_path / "other", constant))


def test_training_without_validation_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = small_recipe(**{"train.steps": 3})
    store = write_store(tmp_path / "store", recipe, validation=False)
    summary = run_job(small_job(store, tmp_path / "run", recipe)).summary
    assert "no validation rows" in caplog.text
    assert "validation_loss" not in summary
    assert summary["effective_rank"] > 0
    stopping = small_recipe(**{"train.early_stopping": 1})
    with pytest.raises(ConfigError, match="early_stopping"):
        run_job(small_job(store, tmp_path / "stopping", stopping))


def test_rejected_rows_are_never_read_and_bad_ones_are_refused(tmp_path: Path) -> None:
    recipe = small_recipe()
    reader = StoreReader(write_store(tmp_path / "store", recipe))
    mask = usable(reader, "train")
    assert not mask[11]
    assert sum(len(p) for p in pieces(reader, mask, "embedding")) == mask.sum() == 159
    mask[11] = True
    with pytest.raises(StoreError, match="1 usable rows") as raised:
        list(pieces(reader, mask, "embedding"))
    assert raised.value.got == "row 11"


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.job.LOCK_WAIT_SECONDS", 0.3)
    recipe = small_recipe(**{"train.steps": 1})
    store = write_store(tmp_path / "store", recipe)
    job = small_job(store, tmp_path / "run", recipe)
    job.folder.mkdir()
    with locked(job.folder), pytest.raises(TrainingError, match="another process"):
        run_job(job)
    assert (job.folder / LOCK_FILE).exists()
    run_job(job)


@pytest.mark.parametrize("name", every_student())
def test_every_student_trains_in_bfloat16_and_channels_last(tmp_path: Path, name: str) -> None:
    recipe = small_recipe(**{"student.name": name, "student.width": 0.25, "train.amp": "bfloat16"})
    torch.manual_seed(0)
    student = build_student(recipe.student, 32)
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(8, 12, generator=generator)
    transform, _ = targets.fit([teacher.numpy()], recipe.targets.model_copy(update={"components": 4}))
    state = TrainingState(
        student, DistilObjective(student.embedding_dim, transform, recipe.loss), recipe.train, ""
    )
    log_mel = torch.randn(4, 32, 2 * FRAMES + 1, generator=generator).half()
    batch = Batch(torch.arange(4), log_mel, teacher[:4])
    before = {k: v.clone() for k, v in student.named_parameters()}
    values = update(state, batch, lambda spectrogram, _: spectrogram, tmp_path)
    assert 0 < values["loss"] < 4
    assert any(not torch.equal(v, before[k]) for k, v in student.named_parameters())
