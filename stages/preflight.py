"""Names that a recipe borrows from registries are looked up before any work, so that a typing error costs nothing."""

from __future__ import annotations

from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError, near_matches
from pipeline.students.options import check_frontend
from pipeline.students.registry import check_student, students


def check(recipe: Recipe, stage: str) -> None:
    """Raise ConfigError if ``recipe`` names a student, option, teacher or task that does not exist, or a student
    that cannot hear its frontend.

    Args:
        recipe: already validated.
        stage: the command; teachers are looked up only where one is run, so that stage 2 needs none of their code.
    """
    for run in recipes.expand(recipe):
        check_student(run.recipe.student)
        if stage in ("embed", "distill"):
            check_frontend(
                students.get(run.recipe.student.name), run.recipe.student, run.recipe.embed.frontend
            )
    if stage in ("fetch", "embed"):
        from pipeline.teachers.registry import teachers

        teachers.get(recipe.embed.teacher.name)
    if stage == "finetune":
        from pipeline.teachers.registry import teachers

        for run in recipes.expand(recipe):
            if run.recipe.finetune.teacher is not None:
                teachers.get(run.recipe.finetune.teacher.name)
    known = [
        path.stem for kind in ("tasks", "suites") for path in (recipes.DATA_MANIFESTS / kind).glob("*.toml")
    ]
    for task in recipe.evaluate.tasks:
        if task not in known:
            raise ConfigError(f"no task is called {task!r}", expected=near_matches(task, known), got=task)
