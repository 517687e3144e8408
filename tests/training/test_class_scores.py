"""A run's classifier on held-out clips: figures against scikit-learn, clips of several windows, views, labels."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import torch
from torch import Tensor, nn

from pipeline.config import LossConfig, TrainConfig
from pipeline.training.class_objective import ClassObjective, ClassSources
from pipeline.training.class_scores import Scored, class_head, score, write_scores
from pipeline.training.controls import LabelObjective, label_table

CLASSES = ["angry", "happy", "sad"]
ROWS, MELS, FRAMES, SHARD = 90, 4, 6, 32


class Rows:
    """A store in memory: two windows a clip; a view and clips without labels among them."""

    def __init__(self, column: str = "label") -> None:
        rng = np.random.default_rng(2)
        code = np.repeat(rng.integers(0, 3, ROWS // 2), 2)
        labels = np.array(CLASSES)[code].astype(object)
        labels[8:12] = ""
        labels[20:22] = "unheard of"
        self.spectrogram = rng.standard_normal((ROWS, MELS, FRAMES)).astype(np.float16)
        self.spectrogram[np.arange(ROWS), code] += np.float16(0.8)
        self.rows = pd.DataFrame({
            "clip_id": [f"clip{n // 2:02}" for n in range(ROWS)],
            "status": ["rejected" if n == 33 else "ok" for n in range(ROWS)],
            "split": ["validation" if n % 6 < 4 else "train" for n in range(ROWS)],
            "view": ["mix" if n in (6, 7) else "clean" for n in range(ROWS)],
            column: labels,
        })  # fmt: skip

    @property
    def shard_sizes(self) -> list[int]:
        return [SHARD, SHARD, ROWS - 2 * SHARD]

    def read_shard(self, shard: int, arrays: tuple[str, ...]) -> dict[str, np.ndarray]:
        assert arrays == ("spectrogram",)
        return {"spectrogram": self.spectrogram[shard * SHARD : (shard + 1) * SHARD]}


class MelMeans(nn.Module):
    """Embedding = the mean of every mel band."""

    def forward(self, log_mel: Tensor) -> Tensor:
        return log_mel[:, 0].mean(dim=2)


def labels_objective(reader: Rows, config: TrainConfig) -> LabelObjective:
    objective = LabelObjective(MELS, label_table(reader, config))
    with torch.no_grad():
        objective.head.weight.copy_(torch.eye(3, MELS))  # type: ignore[operator]
    return objective


def scored_by_hand(reader: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and logits of the clips that count, of the classifier that reads one band a class."""
    rows = reader.rows
    keep = (rows.status == "ok") & (rows.split == "validation") & (rows.view == "clean")
    keep &= rows.label.isin(CLASSES)
    logits = reader.spectrogram.astype(np.float32).mean(axis=2)[:, :3]
    table = pd.DataFrame(logits).assign(clip=rows.clip_id, truth=rows.label)[keep]
    grouped = table.groupby("clip")
    truth = grouped["truth"].first().map(CLASSES.index).to_numpy()
    return truth, grouped[[0, 1, 2]].mean().to_numpy()


def run_score(reader: Rows, config: TrainConfig, objective: object) -> tuple[Scored, list[str]]:
    found = score(MelMeans(), objective, reader, config, torch.device("cpu"), None)
    assert found is not None
    return found


def test_figures_are_scikit_learn_s_over_clips(tmp_path: Path) -> None:
    reader, config = Rows(), TrainConfig(control="labels", batch_size=7)
    objective = labels_objective(reader, config)
    bias = objective.head.bias.detach().numpy()  # type: ignore[operator]
    scored, classes = run_score(reader, config, objective)
    truth, logits = scored_by_hand(reader)
    assert classes == CLASSES
    assert (scored.truth == truth).all()
    np.testing.assert_allclose(scored.logits, logits + bias, atol=1e-3)
    figures = write_scores(tmp_path, scored, classes, "run")
    guess = scored.logits.argmax(axis=1)
    metrics = sklearn.metrics
    assert figures == {
        "scored_clips": len(truth), "classes": 3,
        "accuracy": pytest.approx(metrics.accuracy_score(truth, guess)),
        "balanced_accuracy": pytest.approx(metrics.balanced_accuracy_score(truth, guess)),
        "macro_f1": pytest.approx(metrics.f1_score(truth, guess, average="macro")),
    }  # fmt: skip
    confusion = json.loads((tmp_path / "confusion.json").read_text())
    assert confusion["counts"] == metrics.confusion_matrix(truth, guess).tolist()
    assert confusion["classes"] == CLASSES
    assert (tmp_path / "confusion.png").stat().st_size > 0
    with np.load(tmp_path / "held_out.npz") as held_out:
        assert held_out["clip_id"].tolist() == sorted(held_out["clip_id"].tolist())
        assert (held_out["logits"] == scored.logits).all()


class Logits:
    """The teacher's logits of every row; some rows have none."""

    classes, name = 3, "teacher"

    def __init__(self, reader: Rows) -> None:
        code = [CLASSES.index(label) if label in CLASSES else 0 for label in reader.rows.label]
        self.values = torch.nn.functional.one_hot(torch.tensor(code), 3).float() * 5
        self.values[30:40] = self.values[30:40].roll(1, dims=1)
        self.values[50:52] = torch.nan
        self.known = self.values.isfinite().all(dim=1).numpy()

    def __call__(self, index: Tensor) -> Tensor:
        return self.values[index]


def test_the_teacher_is_scored_on_the_same_clips(tmp_path: Path) -> None:
    reader, config = Rows(), TrainConfig(batch_size=16)
    # All of the weight on the teacher: the labels are looked at by the score alone.
    loss = LossConfig(feature=0, hinton=1, hinton_alpha=0, hinton_alpha_weighs="labels")
    sources = ClassSources(Logits(reader), CLASSES, None)  # type: ignore[arg-type]
    objective = ClassObjective(MELS, loss, sources)
    scored, _ = run_score(reader, config, objective)
    figures = write_scores(tmp_path, scored, CLASSES, "run")
    assert scored.teacher is not None
    known = np.isfinite(scored.teacher).all(axis=1)
    assert 0 < known.sum() < len(known)
    theirs = scored.teacher.argmax(axis=1)
    assert figures["teacher_accuracy"] == pytest.approx((theirs == scored.truth)[known].mean())
    assert 0 < figures["teacher_accuracy"] < 1
    agree = (theirs == scored.logits.argmax(axis=1))[known].mean()
    assert figures["teacher_agreement"] == pytest.approx(agree)
    assert class_head(copy.deepcopy(objective)) is not None


def test_rows_of_several_labels_get_average_precision_and_no_confusion(tmp_path: Path) -> None:
    reader, config = Rows(), TrainConfig(control="labels", label_kind="bce")
    reader.rows["label"] = [f"{a};{b}" if a and n % 3 == 0 else a for n, (a, b) in enumerate(
        zip(reader.rows.label, np.roll(reader.rows.label, 2), strict=True)
    )]  # fmt: skip
    objective = labels_objective(reader, config)
    with torch.no_grad():
        head = nn.Linear(MELS, len(objective.classes))
    objective.head = head
    scored, classes = run_score(reader, config, objective)
    assert scored.truth.shape == scored.logits.shape
    figures = write_scores(tmp_path, scored, classes, "run")
    there = scored.truth.any(axis=0)
    want = np.mean([
        sklearn.metrics.average_precision_score(scored.truth[:, c], scored.logits[:, c])
        for c in np.flatnonzero(there)
    ])  # fmt: skip
    assert figures["mean_average_precision"] == pytest.approx(want)
    assert not (tmp_path / "confusion.json").exists()


def test_nothing_to_score_is_no_error() -> None:
    config, device = TrainConfig(control="labels"), torch.device("cpu")
    reader = Rows()
    objective = labels_objective(reader, config)
    assert score(MelMeans(), nn.Linear(2, 2), reader, config, device, None) is None
    assert score(MelMeans(), objective, Rows("emotion"), config, device, None) is None
    reader.rows["split"] = "train"
    assert score(MelMeans(), objective, reader, config, device, None) is None
