"""A distilled student trained further on labels: where it starts, what may be frozen, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import TrainConfig
from pipeline.data.loader import ShardLoader
from pipeline.errors import ConfigError, MissingArtifactError
from pipeline.store.reader import StoreReader
from pipeline.students.saved import load_student, read_description
from pipeline.training.controls import LabelObjective, LabelTable, label_table
from pipeline.training.job import run_job
from stages import locations
from tests.training.small_store import small_job, small_recipe, weights, write_store


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store and a student distilled from it."""
    folder = tmp_path_factory.mktemp("start")
    recipe = small_recipe(**{"train.steps": 120, "train.validate_every": 60})
    store = write_store(folder / "store", recipe, rows=400)
    run_job(small_job(store, folder / "distilled", recipe))
    return store, folder / "distilled"


LABELS = {"train.control": "labels", "train.steps": 30, "train.validate_every": 15, "train.warmup_steps": 2}


def test_a_frozen_backbone_is_the_run_it_started_from_and_its_head_learns(
    distilled: tuple[Path, Path], tmp_path: Path
) -> None:
    store, start = distilled
    recipe = small_recipe(
        **LABELS,
        **{"train.start_from": f"run:{start}", "train.frozen_backbone": True, "train.learning_rate": 0.05},
    )
    done = run_job(small_job(store, tmp_path / "tuned", recipe))
    ours, theirs = (load_file(folder / "student.safetensors") for folder in (done.folder, start))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert done.summary["validation_accuracy"] > 0.6
    assert done.summary["start_from"]["digest"] == artifact.read(start).digest
    saved = read_description(done.folder)
    assert saved.teacher is not None
    assert saved.teacher.name == "linear"


def test_fine_tuning_starts_at_the_run_and_beats_labels_alone(
    distilled: tuple[Path, Path], tmp_path: Path
) -> None:
    store, start = distilled
    from_run = {"train.start_from": f"run:{start.parent}/distill*"}
    shares = {"train.learning_rate_shares": {"student": 0.1}}
    untouched = run_job(
        small_job(store, tmp_path / "none", small_recipe(**{**LABELS, **from_run, "train.steps": 0}))
    )
    assert weights(untouched.folder).keys() >= {"classifier.safetensors:weight"}
    assert read_description(untouched.folder).mean == read_description(start).mean
    student, begun = load_student(start), load_student(untouched.folder)
    log_mel = torch.randn(3, 16, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(student(log_mel), begun(log_mel))
    tuned = run_job(small_job(store, tmp_path / "tuned", small_recipe(**LABELS, **from_run, **shares)))
    alone = run_job(small_job(store, tmp_path / "alone", small_recipe(**LABELS)))
    assert tuned.summary["validation_loss"] < alone.summary["validation_loss"]


def test_another_student_or_frontend_and_two_starts_are_refused(
    distilled: tuple[Path, Path], tmp_path: Path
) -> None:
    store, start = distilled
    given = {**LABELS, "train.start_from": f"run:{start}"}
    for key, value in {"student.width": 0.5, "embed.frontend.min_hz": 20.0}.items():
        changed = small_recipe(**given, **{key: value})
        job = small_job(store, tmp_path / "run", changed)
        if key.startswith("embed"):
            job.inputs["frontend"] = small_job(store, tmp_path, small_recipe()).inputs["frontend"]
        with pytest.raises(ConfigError, match=key):
            run_job(job)
    both = small_recipe(**given, **{"student.weights": str(start)})
    with pytest.raises(ConfigError, match="two places"):
        run_job(small_job(store, tmp_path / "both", both))
    absent = small_recipe(**{**given, "train.start_from": f"run:{tmp_path}/nowhere"})
    with pytest.raises(MissingArtifactError, match="no finished run"):
        run_job(small_job(store, tmp_path / "absent", absent))


def test_the_starting_runs_content_names_the_run_and_its_place_does_not(
    distilled: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = small_recipe(**LABELS, **{"train.start_from": f"run:{distilled[1]}"})
    elsewhere = recipes.change(recipe, {"train.start_from": "run:somewhere/else"})
    assert locations.run_config(recipes.expand(recipe)[0]) == locations.run_config(
        recipes.expand(elsewhere)[0]
    )
    plain = locations.run_config(recipes.expand(small_recipe())[0])
    assert not {"start_from", "schedule", "bad_batches", "compile"} & set(plain["train"])


class _Reader:
    def __init__(self, store: Path) -> None:
        self._reader = StoreReader(store)
        self.rows = self._reader.rows.copy()
        self.rows["tags"] = [("a;b", "b; c", "", "c")[i % 4] for i in range(len(self.rows))]


def test_several_labels_a_row_are_learnt_by_binary_cross_entropy(distilled: tuple[Path, Path]) -> None:
    reader = _Reader(distilled[0])
    table = label_table(reader, TrainConfig(label_column="tags", label_kind="bce"))  # type: ignore[arg-type]
    assert table.classes == ["a", "b", "c"]
    assert table.codes[:4].tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]]
    assert table.labelled[:4].tolist() == [True, True, False, True]
    objective = LabelObjective(5, table, smoothing=0.2)
    embedding = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    index = torch.arange(4)
    assert objective.usable(index).tolist() == [True, True, False, True]
    loss, terms = objective(embedding, index, embedding)
    logits = objective.head(embedding)
    truth = torch.tensor(table.codes[:4]).double() * 0.8 + 0.1
    chance = torch.sigmoid(logits.double())
    want = -(truth * chance.log() + (1 - truth) * (1 - chance).log()).mean()
    assert float(loss.detach()) == pytest.approx(float(want.detach()), rel=1e-5)
    best = logits.argmax(dim=1)
    assert float(terms["accuracy"]) == np.mean([table.codes[i, best[i]] for i in range(4)])


def test_label_smoothing_is_torchs() -> None:
    codes = np.array([0, 2, 1])
    table = LabelTable(["a", "b", "c"], codes, np.ones(3, dtype=bool))
    objective = LabelObjective(4, table, smoothing=0.3)
    embedding = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    smooth = F.one_hot(torch.tensor(codes), 3) * 0.7 + 0.1
    want = -(smooth * F.log_softmax(objective.head(embedding), dim=1)).sum(dim=1).mean()
    assert float(objective(embedding, torch.arange(3), embedding)[0]) == pytest.approx(float(want), rel=1e-5)


def test_classes_are_written_beside_the_classifier(distilled: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = small_recipe(**{**LABELS, "train.steps": 2})
    done = run_job(small_job(distilled[0], tmp_path / "run", recipe))
    classes = json.loads((done.folder / "classes.json").read_text())
    assert load_file(done.folder / "classifier.safetensors")["weight"].shape[0] == len(classes)
    assert ShardLoader(StoreReader(distilled[0]), 8).rows > 0
