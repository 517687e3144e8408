"""Which logits a run learns from is pinned by digest before it starts; what a recipe cannot have costs no work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.errors import DigestMismatchError, MissingArtifactError
from pipeline.recipe import Run
from pipeline.training.job import run_job
from stages import distill, locations
from tests.training.logits_store import add_logits
from tests.training.small_store import CLASSES, small_recipe, write_store

TAGS = {"loss.feature": 0.0, "loss.tags": 1.0, "train.steps": 3}


def _recipe(tmp_path: Path, **changes: Any) -> Recipe:
    places = {"paths.store": str(tmp_path / "store"), "paths.artifacts": str(tmp_path / "artifacts")}
    return small_recipe(**places, **changes)


def test_a_run_is_pinned_to_the_followed_teachers_logits_and_trains(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, **TAGS)
    write_store(tmp_path / "store", recipe, rows=80)
    with pytest.raises(MissingArtifactError, match="no logits at all"):
        locations.run_inputs(Run("r", 0, recipe))
    assert "logits" not in locations.run_inputs(Run("r", 0, _recipe(tmp_path)))
    spec, _ = add_logits(tmp_path / "store", recipe)
    assert locations.run_inputs(Run("r", 0, recipe))["logits"] == spec.digest
    control = _recipe(tmp_path, **TAGS, **{"train.control": "random"})
    assert "logits" not in locations.run_inputs(Run("r", 0, control)), "the floor looks at no loss"
    with pytest.raises(DigestMismatchError, match="another"):
        locations.run_inputs(Run("r", 0, _recipe(tmp_path, **TAGS, **{"loss.logits": "another"})))
    (job,) = distill.jobs_of(recipe)
    done = run_job(job)
    assert done.summary["logits"] == spec.digest
    assert json.loads((job.folder / "classes.json").read_text()) == list(CLASSES)


def test_the_names_of_the_classes_count_by_content_and_not_by_place(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, **TAGS)
    write_store(tmp_path / "store", recipe, rows=80)
    add_logits(tmp_path / "store", recipe)
    folders = []
    for name, classes in (
        ("a.json", ["x", "y", "z"]),
        ("b.json", ["x", "y", "z"]),
        ("c.json", ["z", "y", "x"]),
    ):
        (tmp_path / name).write_text(json.dumps(classes))
        named = _recipe(tmp_path, **TAGS, **{"loss.classes": str(tmp_path / name)})
        folders.append(locations.run_folder(Run("r", 0, named)))
    assert folders[0] == folders[1] != folders[2]
    assert locations.run_inputs(Run("r", 0, named))["classes"] == artifact.file_digest(tmp_path / "c.json")
    gone = _recipe(tmp_path, **TAGS, **{"loss.classes": str(tmp_path / "gone.json")})
    with pytest.raises(MissingArtifactError, match=r"loss\.classes"):
        locations.run_inputs(Run("r", 0, gone))
