"""The probe on development folds: which rows it sees, and its scores against scikit-learn written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from pipeline import recipe as recipes
from pipeline.config import Recipe, SelectionConfig
from pipeline.errors import ConfigError
from pipeline.search.development import DevelopmentProbe, chosen_rows, fold_score, folds_of
from pipeline.search.metric import Metric
from pipeline.store.reader import StoreReader
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import load_student, read_description
from pipeline.training.job import run_job
from stages import trial_jobs
from tests.search.in_process import small_study


def rows_of(**columns: Any) -> pd.DataFrame:
    count = len(next(iter(columns.values())))
    base = {"status": "ok", "split": "train", "fold": -1, "label": "a", "dataset": "d"}
    return pd.DataFrame({**{k: [v] * count for k, v in base.items()}, **columns})


def selection(**changes: Any) -> SelectionConfig:
    return SelectionConfig(metric="probe_score", **changes)


def test_no_test_fold_and_no_test_split_is_ever_chosen() -> None:
    generator = np.random.default_rng(0)
    rows = rows_of(
        fold=generator.integers(0, 5, 300), split=generator.choice(["train", "validation", "test"], 300),
        status=generator.choice(["ok", "rejected"], 300), label=generator.choice(["", "x", "y"], 300),
    )  # fmt: skip
    chosen = chosen_rows(rows, selection(test_folds=(1, 4)), Recipe())
    expected = [
        row.fold not in (1, 4) and row.split != "test" and row.status == "ok" and row.label != ""
        for row in rows.itertuples()
    ]
    assert chosen.tolist() == expected
    assert set(folds_of(rows[chosen])) == {0, 2, 3}
    with pytest.raises(ConfigError, match="say which are kept") as caught:
        chosen_rows(rows, selection(), Recipe())
    assert "selection.test_folds" in str(caught.value)


def test_labels_that_a_task_of_the_recipe_scores_are_left_alone() -> None:
    # The demo's tasks score the label of two datasets; "dataset" itself is scored by none.
    demo = recipes.load("demo")
    rows = rows_of(
        dataset=["hydrogen-drumkits", "sonic-pi-samples", "other"], split=["train", "train", "validation"]
    )
    assert chosen_rows(rows, selection(), demo).tolist() == [False, False, True]
    assert chosen_rows(rows, selection(label_column="dataset"), demo).all()
    with pytest.raises(ConfigError, match="to develop on"):
        chosen_rows(rows[:2], selection(), demo)
    with pytest.raises(ConfigError, match="no column"):
        chosen_rows(rows, selection(label_column="lable"), demo)


def test_held_out_rows_are_kept_when_rows_are_limited() -> None:
    rows = rows_of(split=["train"] * 50 + ["validation"] * 10)
    chosen = chosen_rows(rows, selection(probe_rows=25), Recipe())
    assert chosen.sum() == 25
    assert chosen[50:].all()
    folds = folds_of(rows[chosen])
    assert folds.tolist() == [-1] * 15 + [0] * 10
    with pytest.raises(ConfigError, match="cannot be divided"):
        folds_of(rows[:50])


def test_the_score_is_the_mean_balanced_accuracy_of_the_folds() -> None:
    generator = np.random.default_rng(4)
    labels = generator.choice(["x", "y", "z"], 160, p=[0.6, 0.3, 0.1])
    centres = {"x": 0.0, "y": 1.2, "z": 2.4}
    embedding = generator.standard_normal((160, 5)) + np.array([[centres[name]] for name in labels])
    folds = generator.integers(-1, 3, 160)
    expected = []
    for fold in (0, 1, 2):
        train, held_out = folds != fold, folds == fold
        scaler = StandardScaler().fit(embedding[train])
        model = LogisticRegression(C=0.1, max_iter=2000).fit(
            scaler.transform(embedding[train]), labels[train]
        )
        expected.append(
            balanced_accuracy_score(labels[held_out], model.predict(scaler.transform(embedding[held_out])))
        )
    found = fold_score(embedding.astype(np.float32), labels, folds, "linear", Recipe())
    assert found == pytest.approx(np.mean(expected), abs=1e-9)
    # A label that no fitted row has cannot be known.
    odd = np.where(np.arange(160) == np.flatnonzero(folds == 0)[0], "never", labels)
    assert 0 < fold_score(embedding, odd, np.where(folds == 0, 0, -1), "knn", Recipe()) <= 1


def test_the_gap_is_measured_from_untrained_students_to_the_teacher(tmp_path: Path) -> None:
    recipe = small_study(
        tmp_path, **{"selection.metric": "gap_recovered", "selection.random_floors": 2, "train.steps": 30}
    )
    job = trial_jobs.job_of(recipe)
    run_job(job)
    probe = DevelopmentProbe(recipe.selection, recipe, job.store, job.inputs)
    found = probe.score(job)

    reader = StoreReader(job.store, frontend=job.inputs["frontend"], teacher=job.inputs["teacher"])
    rows = reader.rows
    chosen = ((rows["status"] == "ok") & (rows["label"] != "")).to_numpy()
    shards = [reader.read_shard(s) for s in range(reader.meta.shards)]
    log_mel = np.concatenate([s["spectrogram"] for s in shards])[chosen].astype(np.float32)
    teacher = np.concatenate([s["embedding"] for s in shards])[chosen].astype(np.float32)
    labels = rows["label"][chosen].to_numpy(dtype=str)
    folds = np.where(rows["split"][chosen] == "validation", 0, -1)

    def score(student: NormalisedStudent) -> float:
        with torch.no_grad():
            embedding = student.eval()(torch.from_numpy(log_mel)[:, None]).numpy()
        return fold_score(embedding, labels, folds, "linear", recipe)

    saved = read_description(job.folder)
    floors = []
    for seed in range(2):
        torch.manual_seed(seed)
        floors.append(score(NormalisedStudent(build_student(recipe.student, 16), saved.mean, saved.std)))
    assert found.score == pytest.approx(score(load_student(job.folder)))
    assert found.floor == pytest.approx(np.mean(floors))
    assert found.teacher == pytest.approx(fold_score(teacher, labels, folds, "linear", recipe))
    gap = (found.score - found.floor) / (found.teacher - found.floor)
    assert Metric("gap_recovered", probe).of_run(job, {}) == pytest.approx(gap)
