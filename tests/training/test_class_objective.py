"""Logits, tags and labels in a run: looked up by row, compared as written by hand, saved, resumed, refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from pipeline.config import LossConfig
from pipeline.errors import ConfigError, MissingArtifactError, TrainingError
from pipeline.store import choice, topk
from pipeline.store.reader import StoreReader
from pipeline.store.schema import OK
from pipeline.training import logits_table
from pipeline.training.class_objective import ClassObjective, ClassSources
from pipeline.training.controls import LabelTable
from pipeline.training.job import run_job
from pipeline.training.logits_table import LogitsTable, teacher_classes
from pipeline.training.loop import Progress, TrainingStopped
from tests.training.logits_store import add_logits, logits_job
from tests.training.small_store import CLASSES, losses, small_recipe, weights, write_store

HINTON = {"loss.hinton": 1.0, "loss.hinton_alpha": 0.3, "loss.hinton_alpha_weighs": "labels"}
ROWS = 60


def _table(folder: Path, **logits: Any) -> tuple[LogitsTable, np.ndarray, StoreReader]:
    recipe = small_recipe()
    store = write_store(folder, recipe, rows=ROWS)
    spec, made = add_logits(store, recipe, **logits)
    reader = StoreReader(store)
    return LogitsTable(reader, spec, (reader.rows["status"] == OK).to_numpy(dtype=bool)), made, reader


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_logits_come_back_by_store_row(tmp_path: Path, dtype: str) -> None:
    table, made, _ = _table(tmp_path / "store", classes=9, dtype=dtype)
    index = torch.tensor([57, 3, 3, 0, 11])
    got = table(index)
    want = torch.from_numpy(made[index].astype(dtype).astype(np.float32))
    assert got.dtype == torch.float32
    assert torch.equal(got[:4], want[:4])
    assert got[4].isnan().all(), "row 11 was rejected"
    assert copy.deepcopy(table) is table


def test_top_k_logits_are_decoded_with_their_tail(tmp_path: Path) -> None:
    table, made, _ = _table(tmp_path / "store", classes=9, top_k=4)
    index = torch.tensor([5, 40])
    want = topk.decode(*topk.encode(made[index], 4), classes=9)
    assert np.allclose(table(index).numpy(), want)
    # The dropped classes share the tail: the sum of all probabilities stays that of the whole row.
    whole = torch.from_numpy(made[index]).logsumexp(dim=1)
    assert torch.allclose(table(index).logsumexp(dim=1), whole, atol=1e-5)


def test_logits_that_do_not_fit_are_refused_with_what_makes_them_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits_table, "LIMIT_BYTES", 500)
    with pytest.raises(ConfigError, match="logits_top_k"):
        _table(tmp_path / "store", classes=9)


def _fake(known: list[bool], logits: torch.Tensor) -> LogitsTable:
    """A table of these rows alone, without a store."""
    table = LogitsTable.__new__(LogitsTable)
    table.classes, table.name, table.place = logits.shape[1], "made up", np.arange(len(logits))
    table._members, table.known = {"logits": logits.numpy()}, np.array(known)
    return table


def test_terms_are_what_they_are_by_hand_and_leave_rows_out_that_lack_them() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding, logits = torch.randn(5, 6, generator=generator), torch.randn(5, 3, generator=generator)
    config = LossConfig(
        feature=0, hinton=1, hinton_alpha=0.3, hinton_alpha_weighs="labels", hinton_temperature=2.0, tags=2,
        labels=0.5,
    )  # fmt: skip
    # The labels' order is not the teacher's.
    names = ["c", "a", "b"]
    table = LabelTable(
        ["a", "b", "c"], np.array([0, -1, 2, 1, -1]), np.array([True, False, True, True, False])
    )
    sources = ClassSources(_fake([True, True, False, True, False], logits), names, table)
    objective = ClassObjective(6, config, sources)
    assert objective.classes == names
    assert list(objective.head) == ["teacher"], "the teacher knows every label: one head for both"
    total, terms = objective(embedding, torch.arange(5), torch.zeros(5, 0))
    made = objective.head["teacher"](embedding)
    codes, labelled, known = torch.tensor([1, 0, 2]), [0, 2, 3], [0, 1, 3]
    hard = F.cross_entropy(made[labelled], codes)
    p, q = (logits[known] / 2).softmax(dim=1), (made[known] / 2).softmax(dim=1)
    soft = 4 * (p * (p.log() - q.log())).sum(dim=1).mean()
    tags = F.binary_cross_entropy_with_logits(made[known], logits[known].sigmoid())
    want = {"hinton": 0.3 * hard + 0.7 * soft, "tags": tags, "labels": hard}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {name: value.item() for name, value in want.items()}, rel=1e-5
    )
    by_hand = want["hinton"] + 2 * want["tags"] + 0.5 * want["labels"]
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert objective.usable(torch.arange(5)).tolist() == [True, True, True, True, False]
    # Rows that nobody knows anything of give terms of 0, finite in value and gradient.
    nothing, terms = objective(embedding, torch.tensor([4, 4, 4, 4, 4]), torch.zeros(5, 0))
    assert nothing.item() == 0.0
    assert all(term.item() == 0.0 for term in terms.values())
    nothing.backward()
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in objective.parameters())


def test_several_labels_a_row_have_a_head_of_their_own_where_the_teacher_does_not_know_them() -> None:
    embedding = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    codes = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    table = LabelTable(["x", "y", "z"], codes, codes.any(axis=1))
    config = LossConfig(feature=0, tags=1, labels=1)
    objective = ClassObjective(4, config, ClassSources(_fake([True] * 3, torch.zeros(3, 5)), None, table))
    _, terms = objective(embedding, torch.arange(3), torch.zeros(3, 0))
    made = objective.head["labels"](embedding)[[0, 2]]
    want = F.binary_cross_entropy_with_logits(made, torch.from_numpy(codes[[0, 2]]).float())
    assert terms["labels"].item() == pytest.approx(want.item(), rel=1e-5)
    assert set(objective.saved_heads) == {"classifier.safetensors", "tags.safetensors"}
    assert objective.classes == ["x", "y", "z"]


RUNS: dict[str, dict[str, Any]] = {
    "hinton alone": {"loss.feature": 0.0, **HINTON},
    "all at once": {
        "loss.feature": {"kind": "linear", "start": 0.0, "end": 1.0, "last_step": 12}, "loss.distance": 1.0,
        "loss.angle": 1.0, "loss.angle_triplets": 500, **HINTON, "loss.hinton_temperature": 2.0, "loss.tags": 1.0,
        "loss.tags_kind": "binary_kl", "loss.labels": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run_learns_saves_its_classifier_and_resumes_with_the_same_bits(tmp_path: Path, name: str) -> None:
    recipe = small_recipe(**RUNS[name], **{"train.steps": 14})
    store = write_store(tmp_path / "store", recipe)
    spec, _ = add_logits(store, recipe)
    whole = run_job(logits_job(store, tmp_path / "whole", recipe, spec))
    job = logits_job(store, tmp_path / "parts", recipe, spec)
    reached = 0

    def note(progress: Progress) -> None:
        nonlocal reached
        reached = progress.step

    with pytest.raises(TrainingStopped):
        run_job(job, on_progress=note, should_stop=lambda: reached == 9)
    run_job(job)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    head = load_file(tmp_path / "whole" / "classifier.safetensors")
    assert head["weight"].shape == (3, whole.summary["embedding_dim"])
    assert json.loads((tmp_path / "whole" / "classes.json").read_text()) == list(CLASSES)
    wanted = {name for name in recipe.loss.weights if recipe.loss.uses(name)}
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    training = next(line for line in lines if "loss" in line)
    assert wanted <= set(training)
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert ("feature_weight" in training) == (name == "all at once")


def test_distilled_logits_answer_more_like_the_teacher_than_any_constant_answer(tmp_path: Path) -> None:
    recipe = small_recipe(**{"loss.feature": 0.0, **HINTON, "loss.hinton_alpha": 0.0, "train.steps": 60})
    store = write_store(tmp_path / "store", recipe)
    spec, made = add_logits(store, recipe)
    run = run_job(logits_job(store, tmp_path / "run", recipe, spec))
    held_out = torch.from_numpy(made[::5]).softmax(dim=1)
    # The best constant answer is the mean of the teacher's probabilities.
    constant = (held_out * (held_out.log() - held_out.mean(dim=0).log())).sum(dim=1).mean().item()
    assert run.summary["validation_hinton"] < 0.8 * constant


def test_what_a_recipe_cannot_have_is_refused_before_any_step(tmp_path: Path) -> None:
    recipe = small_recipe(**{"loss.feature": 0.0, **HINTON})
    store = write_store(tmp_path / "store", recipe, rows=ROWS)
    meta = StoreReader(store).meta
    teacher = next(one for one in meta.arrays if one.kind == "embedding").digest
    with pytest.raises(MissingArtifactError, match="outputs"):
        choice.choose_logits(meta.arrays, None, [teacher], str(store))
    unnamed, _ = add_logits(store, recipe, classes=9)
    meta = StoreReader(store).meta
    assert choice.choose_logits(meta.arrays, None, [teacher], str(store)) == unnamed
    with pytest.raises(MissingArtifactError, match=r"loss\.logits=NAME"):
        choice.choose_logits(meta.arrays, None, ["another"], str(store))
    with pytest.raises(ConfigError, match=r"loss\.classes"):
        run_job(logits_job(store, tmp_path / "unnamed", recipe, unnamed))
    several = small_recipe(**{"loss.feature": 0.0, **HINTON, "train.label_kind": "bce"})
    with pytest.raises(ConfigError, match="one label a row"):
        run_job(logits_job(store, tmp_path / "several", several, unnamed))
    column = small_recipe(**{"loss.labels": 1.0, "train.label_column": "lable"})
    with pytest.raises(ConfigError, match="label"):
        run_job(logits_job(store, tmp_path / "column", column, None))
    with pytest.raises(TrainingError, match="classes"):
        run_job(
            logits_job(
                store,
                tmp_path / "one",
                small_recipe(**{"loss.labels": 1.0, "train.label_column": "split"}),
                None,
            )
        )
    assert not any(
        (tmp_path / name / "metrics.jsonl").exists() for name in ("unnamed", "several", "column", "one")
    )


def test_names_of_the_teachers_classes_come_from_a_file_where_the_store_has_none(tmp_path: Path) -> None:
    recipe = small_recipe()
    store = write_store(tmp_path / "store", recipe, rows=ROWS)
    named, _ = add_logits(store, recipe)
    unnamed, _ = add_logits(write_store(tmp_path / "other", recipe, rows=ROWS), recipe, classes=9)
    assert teacher_classes(named, None) == list(CLASSES)
    assert teacher_classes(unnamed, None) is None
    file = tmp_path / "classes.json"
    file.write_text(json.dumps([*CLASSES, *"abcdef"]))
    assert teacher_classes(unnamed, file) == [*CLASSES, *"abcdef"]
    for wrong in (
        json.dumps(list(CLASSES)),
        json.dumps(["a"] * 9),
        json.dumps({"a": 1}),
        "[",
        json.dumps([1] * 9),
    ):
        file.write_text(wrong)
        with pytest.raises(ConfigError):
            teacher_classes(unnamed, file)


def test_clusters_of_the_teachers_space_are_made_once_and_repel(tmp_path: Path) -> None:
    recipe = small_recipe(
        **{"loss.feature": 0.0, "loss.contrastive": 1.0, "loss.contrastive_kind": "cluster_aware",
           "loss.contrastive_clusters": 4, "train.steps": 4, "paths.artifacts": str(tmp_path / "artifacts")}
    )  # fmt: skip
    store = write_store(tmp_path / "store", recipe)
    run = run_job(logits_job(store, tmp_path / "run", recipe, None))
    assert np.isfinite(run.summary["validation_contrastive"])
    assert len(list((tmp_path / "artifacts" / "clusters").iterdir())) == 1
