"""Every shipped recipe names what exists: students that hear its frontend, teachers, and arrays that it embeds."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from pipeline import recipe as recipes
from pipeline.config import Recipe, StudentConfig
from pipeline.students.base import Student
from pipeline.students.options import check_frontend
from pipeline.students.registry import build_student, students
from pipeline.teachers.registry import teachers

NAMES = sorted(path.stem for path in recipes.SHIPPED.glob("*.toml"))


@functools.cache
def built(student: str, bands: int) -> Student:
    with torch.device("meta"):
        return build_student(StudentConfig.model_validate_json(student), bands)


def embedded(recipe: Recipe) -> set[str]:
    """Return the names under which the recipe's teachers are stored."""
    return {str(teacher.options.get("name", teacher.name)) for teacher in recipe.embed.all_teachers}


@pytest.mark.parametrize("name", NAMES)
def test_names_what_exists(name: str) -> None:
    recipe = recipes.load(name)
    for teacher in recipe.embed.all_teachers:
        assert teacher.name in teachers.names() or teacher.name.startswith("run:"), teacher.name
    runs = recipes.expand(recipe)
    assert len({run.label for run in runs}) == len(runs)
    for run in runs:
        frontend = run.recipe.embed.frontend
        assert frontend in recipe.embed.all_frontends, (
            f"{run.label} hears a log-mel that the recipe does not embed"
        )
        student = built(json.dumps(run.recipe.student.model_dump(mode="json"), sort_keys=True), frontend.mels)
        assert student.embedding_dim > 0
        check_frontend(students.get(run.recipe.student.name), run.recipe.student, frontend)
        wanted = {given.split(":")[0] for given in run.recipe.targets.teachers}
        wanted |= {run.recipe.loss.logits} if run.recipe.loss.logits else set()
        assert wanted <= embedded(recipe), f"{run.label} learns from what the recipe does not embed"


def test_the_published_systems_are_whole() -> None:
    thesis = {run.name for run in recipes.expand(recipes.load("thesis_audioset"))}
    students = ["micronet_m0", "micronet_m1", "micronet_m2", "micronet_m3"]
    students += ["mobilevitv2_050", "mobilevitv2_075", "mobilevitv2_100"]
    objectives = ["distance", "angle", "cosine", "feature", "random"]
    assert thesis == {f"{student}-{objective}" for student in students for objective in objectives}
    for other in ("thesis_internal", "thesis_both"):
        assert {run.name for run in recipes.expand(recipes.load(other))} == thesis
        assert recipes.load(other).train == recipes.load("thesis_audioset").train
    ssondo = [run.recipe for run in recipes.expand(recipes.load("ssondo")) if run.name != "random"]
    assert len({(r.student.name, r.targets.teachers, r.sampling.balance) for r in ssondo}) == 3 * 2 * 2
    tess = [run.recipe.loss for run in recipes.expand(recipes.load("tess_wav2tiny")) if run.name != "random"]
    assert {(loss.hinton_temperature, loss.hinton_alpha) for loss in tess} == {
        (temperature, alpha) for temperature in (1.0, 2.0, 3.0) for alpha in (0.0, 0.5, 1.0)
    }
