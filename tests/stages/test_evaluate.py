"""``ossicle evaluate`` over a recipe's runs, a single model, and a table of one's own."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe, StudentConfig, canonical_json
from pipeline.errors import ConfigError, DigestMismatchError, MissingArtifactError
from pipeline.recipe import Run
from pipeline.store.reader import StoreReader
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import save_student
from stages import evaluate, locations, manifest
from tests.evaluation import sounds
from tests.evaluation.onnx_students import onnx_file

STUDENT = StudentConfig(width=0.25)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe over a folder of three classes, the tiny teacher, two seeds of a student and a label control."""
    sounds.write_folder(tmp_path / "audio")
    made = Recipe.model_validate(
        {
            "name": "tiny",
            "paths": {"artifacts": tmp_path / "artifacts"},
            "fetch": {"audio_folder": tmp_path / "audio"},
            "embed": {"teacher": {"name": "tiny"}, "frontend": {"mels": 16}, "window_seconds": 0.5},
            "student": STUDENT.model_dump(),
            "evaluate": {"tasks": ["drums"], "bootstrap": 50, "random_floors": 2},
            "export": {"int8": False},
            "runs": {"small": {"seeds": [0, 1]}, "labels": {"set": {"train.control": "labels"}}},
        }
    )
    monkeypatch.setattr(locations, "run_folder", lambda run: tmp_path / "run" / run.label)
    manifest.run(made, console=Console(file=io.StringIO()))
    return made


def train(run: Run) -> Path:
    """Save a random student as the finished run."""
    folder = locations.run_folder(run)
    torch.manual_seed(100 + run.seed)
    student = NormalisedStudent(build_student(STUDENT, 16), -4.0, 3.0)
    save_student(folder, student.eval(), STUDENT, run.recipe.embed.frontend)
    summary = {"validation_neighbour_overlap": 0.3 + 0.1 * run.seed}
    artifact.finish(folder, kind="run", config={"label": run.label}, inputs={}, summary=summary)
    return folder


def train_all(recipe: Recipe) -> None:
    for run in recipes.expand(recipe):
        train(run)


def call(recipe: Recipe, **options: Any) -> tuple[Path, dict[str, Any], str]:
    text = io.StringIO()
    folder = evaluate.run(recipe, console=Console(file=text, width=220), **options)
    return folder, json.loads((folder / "scores.json").read_text()), text.getvalue()


def test_runs_of_one_network_are_compared_over_their_seeds(recipe: Recipe) -> None:
    table = recipe.model_dump(mode="json")
    table["runs"] = {"small": {"seeds": [0, 1]}, "other": {"seeds": [0, 2]}}
    two = Recipe.model_validate(table)
    train_all(two)
    folder, scores, printed = call(two)
    lines = (folder / evaluate.SEEDS).read_text().splitlines()
    cells = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("| ")}
    # Overlaps 0.3, 0.4 and 0.3, 0.5: standard deviations 0.0707 and 0.1414.
    assert "| 35.0 ± 7.1 |" in cells["small"]
    assert "| 40.0 ± 14.1 |" in cells["other"]
    overlaps = "neighbour overlap, validation rows"
    assert f"| {overlaps} | other | small | 5.0 | 11.2 | no |" in cells[overlaps]
    row = next(r for r in scores["summary"] if (r["name"], r["probe"]) == ("small", "linear"))
    assert f"| {100 * row['retention']:.1f} ± {100 * row['retention_spread']:.1f} |" in cells["small"]
    assert str(folder / evaluate.SEEDS) in printed
    (folder / evaluate.SEEDS).unlink()
    call(two)
    assert (folder / evaluate.SEEDS).is_file()


def test_everything_stands_side_by_side(recipe: Recipe) -> None:
    train_all(recipe)
    folder, scores, printed = call(recipe)
    assert "no clips of hydrogen-drumkits" in printed
    roles = {model["key"]: model["role"] for model in scores["models"]}
    counts = {role: list(roles.values()).count(role) for role in set(roles.values())}
    assert counts == {"teacher": 1, "student": 2, "labels": 1, "random": 2, "log_mel": 2}
    (task,) = scores["tasks"]
    assert task["classes"] == dict.fromkeys(sounds.CLASSES, 6)
    assert len(scores["rows"]) == 2 * len(roles)
    for row in scores["rows"]:
        assert row["score"] == pytest.approx(np.mean(row["folds"]))
        assert row["low"] <= row["high"]
    # Three classes as unlike as these are told apart by the mean spectrum alone.
    assert next(r for r in scores["rows"] if (r["name"], r["probe"]) == ("mean", "linear"))["score"] > 0.8
    teacher = next(r for r in scores["structure"] if r["role"] == "teacher")
    assert teacher["linear_cka"] == pytest.approx(1.0)
    assert teacher["neighbour_overlap"] == 1.0
    projections = json.loads((folder / "projections.json").read_text())["own_labels"]
    assert len(projections["maps"]) == 3
    assert all(np.shape(points) == (18, 2) for points in projections["maps"].values())
    (vectors,) = (folder.parents[1] / "embeddings").iterdir()
    stored = StoreReader(vectors).meta
    known = {
        model["source"] for model in scores["models"] if model["role"] in ("teacher", "random", "log_mel")
    }
    assert known <= {spec.digest for spec in stored.arrays}
    assert (stored.name, stored.rows) == ("clips", 18)
    assert "student small" in printed
    assert "share of the teacher-over-random gap" in printed


def test_a_finished_evaluation_is_reused_until_a_run_changes(recipe: Recipe, tmp_path: Path) -> None:
    runs = recipes.expand(recipe)
    for run in runs[:-1]:
        train(run)
    folder, scores, printed = call(recipe)
    assert "labels-seed0 is not trained yet" in printed
    written = (folder / "scores.json").stat().st_mtime_ns
    shutil.move(tmp_path / "audio", tmp_path / "elsewhere")
    _, _, printed = call(recipe)
    assert "reused" in printed
    assert (folder / "scores.json").stat().st_mtime_ns == written
    shutil.move(tmp_path / "elsewhere", tmp_path / "audio")
    train(runs[-1])
    again, more, _ = call(recipe)
    assert again == folder
    assert len(more["models"]) == len(scores["models"]) + 1


def test_one_model_stands_beside_teacher_and_floors(recipe: Recipe) -> None:
    run = train(recipes.expand(recipe)[0])
    folder, scores, _ = call(recipe, model=str(run))
    assert folder != locations.evaluation_folder(recipe)
    assert [m["role"] for m in scores["models"]].count("random") == 2
    assert {m["role"] for m in scores["models"]} == {"teacher", "student", "random", "log_mel"}
    (student,) = [row for row in scores["summary"] if row["role"] == "student" and row["probe"] == "knn"]
    assert student["retention"] is not None
    _, scores, _ = call(recipe, model="teacher:tiny")
    assert [m["key"] for m in scores["models"]] == ["teacher-tiny", "log_mel-mean", "log_mel-mean_std"]


def test_a_table_of_ones_own(recipe: Recipe, tmp_path: Path) -> None:
    rows = [
        f"{path},{label},{label}{path[-5]}" for label in sounds.CLASSES for path in _files(tmp_path, label)
    ]
    table = tmp_path / "audio" / "mine.csv"
    table.write_text("path,what,who\n" + "\n".join(rows))
    _, scores, _ = call(recipe, model="teacher:tiny", manifest=table, label="what", group="who")
    (task,) = scores["tasks"]
    assert task["name"] == "mine"
    assert task["groups"] == 18
    by_name = {(row["model"], row["probe"]): row["score"] for row in scores["rows"]}
    assert by_name["teacher-tiny", "linear"] > 0.8


def export(run: Run, trained: Path) -> Path:
    """Finish an export of ``run`` whose int8 file gives the log-mel's mean."""
    folder = locations.export_folder(run)
    folder.mkdir(parents=True)
    for name in ("student.json", "student.safetensors"):
        shutil.copy(trained / name, folder / name)
    onnx_file(folder / "student_s8s8.onnx", {"ossicle.frontend": canonical_json(run.recipe.embed.frontend)})
    artifact.finish(folder, kind="export", config={}, inputs={})
    return folder


def test_the_int8_file_has_its_own_row(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "export_folder", lambda run: tmp_path / "export" / run.label)
    recipe = recipes.change(recipe, {"export.int8": True})
    train_all(recipe)
    run = recipes.expand(recipe)[0]
    folder = export(run, locations.run_folder(run))
    _, scores, printed = call(recipe)
    assert "small-seed1 is not exported yet" in printed
    by_model = {row["model"]: row["score"] for row in scores["rows"] if row["probe"] == "linear"}
    (int8,) = [model for model in scores["models"] if model["role"] == "int8"]
    assert (int8["key"], int8["name"], int8["seed"]) == ("small-seed0-int8", "small", 0)
    # The hand-made file computes exactly what the log-mel floor is.
    assert by_model["small-seed0-int8"] == by_model["log_mel-mean"]
    shutil.copy(locations.run_folder(recipes.expand(recipe)[1]) / "student.json", folder / "student.json")
    with pytest.raises(DigestMismatchError, match="was not exported from"):
        call(recipe)


def _files(folder: Path, label: str) -> list[str]:
    return [f"{label}/{path.name}" for path in sorted((folder / "audio" / label).iterdir())]


def test_a_folder_without_labels_still_shows_structure(recipe: Recipe, tmp_path: Path) -> None:
    audio = tmp_path / "flat"
    audio.mkdir()
    for label in sounds.CLASSES:
        for path in (tmp_path / "audio" / label).iterdir():
            shutil.copy(path, audio / f"{label}_{path.name}")
    flat = recipes.change(recipe, {"fetch.audio_folder": audio})
    manifest.run(flat, console=Console(file=io.StringIO()))
    train_all(flat)
    _, scores, printed = call(flat)
    assert "structure alone" in printed
    assert scores["rows"] == []
    assert len(scores["structure"]) == len(scores["models"])


def test_what_is_missing_is_said(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="no trained run") as caught:
        call(recipe)
    assert "ossicle distill tiny" in str(caught.value)
    with pytest.raises(ConfigError, match="'esc10' needs its audio"):
        call(recipes.change(recipe, {"evaluate.tasks": ("esc10",)}))
    with pytest.raises(ConfigError, match="no task is called"):
        call(recipes.change(recipe, {"evaluate.audio_roots": {"esc11": tmp_path}}))
