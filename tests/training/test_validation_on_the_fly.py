"""The probe against scikit-learn by hand, what early stopping watches, and modules that are told of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.errors import ConfigError, TrainingError
from pipeline.training.job import run_job
from pipeline.training.loop import fit
from pipeline.training.metrics import read_metrics
from pipeline.training.probe import FOLDS, read_probe
from pipeline.training.state import TrainingState
from tests.training.numbered_batches import ROWS, BatchNormStudent, NumberedLoader, SquaredErrors
from tests.training.small_store import small_job, small_recipe, write_store


class _Reader:
    """As much of a store's reader as the probe looks at."""

    def __init__(self, **columns: Any) -> None:
        self.rows = pd.DataFrame(columns)


def test_the_probe_equals_scikit_learn_by_hand_and_parts_no_recording() -> None:
    generator = np.random.default_rng(0)
    rows, index = 90, np.arange(90)[::-1].copy()
    recordings = [f"take{i // 3}" for i in range(rows)]
    labels = ["" if i % 10 == 0 else "abc"[(i // 3) % 3] for i in range(rows)]
    probe = read_probe(
        _Reader(group=recordings, label=labels, dataset="one"), index, TrainConfig(probe_column="label")
    )  # type: ignore[arg-type]
    assert probe is not None
    takes = np.array(recordings)[index[probe.places]]
    assert all(len(set(probe.folds[takes == take])) == 1 for take in set(takes))
    assert set(probe.folds) == set(range(FOLDS))
    truth = np.array(labels)[index[probe.places]]
    embedding = generator.standard_normal((rows, 7))
    embedding[probe.places, 0] += 2.0 * (truth == "a")
    hits = 0
    for fold in range(FOLDS):
        tested = probe.folds == fold
        scale = StandardScaler().fit(embedding[probe.places][~tested])
        model = RidgeClassifier(alpha=1.0).fit(
            scale.transform(embedding[probe.places][~tested]), truth[~tested]
        )
        hits += int((model.predict(scale.transform(embedding[probe.places][tested])) == truth[tested]).sum())
    assert probe.accuracy(embedding) == pytest.approx(hits / len(truth))
    assert "" not in truth


def test_a_column_that_tells_nothing_apart_is_refused() -> None:
    reader = _Reader(group=["a", "b"], label=["x", "x"])
    with pytest.raises(TrainingError, match="too little"):
        read_probe(reader, np.arange(2), TrainConfig(probe_column="label"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"train\.probe_column names no column"):
        read_probe(reader, np.arange(2), TrainConfig(probe_column="labell"))  # type: ignore[arg-type]
    assert read_probe(reader, np.arange(2), TrainConfig()) is None  # type: ignore[arg-type]


class _Squares(SquaredErrors):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, int]] = []

    def at_step(self, step: int, steps: int) -> None:
        self.told.append((step, steps))


class _Warming(BatchNormStudent):
    """A student whose temperature is a function of the step."""

    temperature = 0.0

    def at_step(self, step: int, steps: int) -> None:
        self.temperature = 1.0 + steps - step


def _state(student: nn.Module, **changes: Any) -> TrainingState:
    keys = {"steps": 40, "warmup_steps": 2, "amp": "off", "validate_every": 2, "batch_size": ROWS, **changes}
    return TrainingState(student, _Squares(), TrainConfig(**keys), "w" * 64)


@pytest.mark.parametrize(
    ("metric", "figure", "scores", "best"),
    [
        ("loss", "validation_loss", [3.0, 2.0, 2.5, 2.0], 1),
        ("neighbour_overlap", "validation_neighbour_overlap", [0.2, 0.5, 0.4, 0.5], 1),
        ("probe_accuracy", "validation_probe_accuracy", [0.1, 0.2, 0.3, 0.1, 0.2], 2),
    ],
)
def test_early_stopping_keeps_the_best_weights_by_its_metric(
    tmp_path: Path, metric: str, figure: str, scores: list[float], best: int
) -> None:
    state = _state(
        BatchNormStudent(), early_stopping=2, early_stopping_metric=metric, probe_column="label"
    )  # fmt: skip
    seen: list[dict[str, Tensor]] = []
    given = iter(scores)

    def validate() -> dict[str, float]:
        seen.append({name: value.clone() for name, value in state.model.state_dict().items()})
        # The other figures say the opposite: they must not count.
        return {"validation_loss": -9.0, "validation_neighbour_overlap": 0.0, figure: next(given)}

    fit(state, NumberedLoader(), tmp_path, augment=lambda log_mel, _: log_mel, validate=validate)
    assert state.step == 2 * len(scores)
    for name, value in state.kept.state_dict().items():
        assert torch.equal(value, seen[best][name]), name


def test_a_metric_that_the_validation_lacks_is_named(tmp_path: Path) -> None:
    state = _state(BatchNormStudent(), early_stopping=1, early_stopping_metric="neighbour_overlap")
    with pytest.raises(TrainingError, match="validation_neighbour_overlap"):
        fit(
            state, NumberedLoader(), tmp_path, augment=lambda log_mel, _: log_mel,
            validate=lambda: {"validation_loss": 1.0},
        )  # fmt: skip


def test_student_and_objective_are_told_of_each_step_before_it_and_so_is_the_average(tmp_path: Path) -> None:
    student = _Warming()
    state = _state(student, steps=4, ema_decay=0.5)
    during: list[float] = []

    def augment(log_mel: Tensor, _: torch.Generator) -> Tensor:
        during.append(student.temperature)
        return log_mel

    kept: list[float] = []

    def validate() -> dict[str, float]:
        kept.append(state.kept["student"].temperature)  # type: ignore[arg-type]
        return {}

    fit(state, NumberedLoader(), tmp_path, augment=augment, validate=validate)
    assert during == [5.0, 4.0, 3.0, 2.0]
    assert kept == [4.0, 2.0]
    assert state.objective.told == [(step, 4) for step in range(4)]  # type: ignore[attr-defined]
    assert state.changes_by_step


def test_a_run_reports_the_probe_of_each_validation(tmp_path: Path) -> None:
    recipe = small_recipe(**{"train.steps": 8, "train.validate_every": 4, "train.probe_column": "label"})
    store = write_store(tmp_path / "store", recipe)
    job = small_job(store, tmp_path / "run", recipe)
    summary = run_job(job).summary
    scores = [r["validation_probe_accuracy"] for r in read_metrics(job.folder) if "validation_loss" in r]
    assert len(scores) == 2
    assert summary["validation_probe_accuracy"] == scores[-1]
    assert 0.4 < scores[-1] <= 1.0
