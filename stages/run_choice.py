"""Which runs of a recipe ``--only`` names, and which of them are trained."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError, MissingArtifactError, near_matches
from pipeline.recipe import Run
from stages import locations


def chosen_runs(recipe: Recipe, only: Sequence[str]) -> list[Run]:
    """Return the runs named in ``only``, by name (``cnn4``) or label (``cnn4-seed0``); all where it is empty.

    Raises:
        ConfigError: there is no such run.
    """
    runs = recipes.expand(recipe)
    known = {run.name for run in runs} | {run.label for run in runs}
    for name in only:
        if name not in known:
            raise ConfigError(f"the recipe has no run {name!r}", expected=near_matches(name, known), got=name)
    return [run for run in runs if not only or run.name in only or run.label in only]


def chosen_students(recipe: Recipe, only: Sequence[str], command: str) -> list[Run]:
    """Return the runs named in ``only``; where it is empty, all that are no control.

    Raises:
        ConfigError: there is no such run, or all are controls; ``command`` is the one to call.
    """
    chosen = [run for run in chosen_runs(recipe, only) if only or run.recipe.train.control == "none"]
    if not chosen:
        raise ConfigError(
            "every run of the recipe is a control", run=f"ossicle {command} {recipe.name} --only NAME"
        )
    return chosen


def trained_runs(runs: Sequence[Run], recipe: Recipe, command: str, verb: str, console: Console) -> list[Run]:
    """Return those of ``runs`` that are trained; ``command`` says which it leaves out.

    Raises:
        MissingArtifactError: there is none to ``verb``.
    """
    trained = [run for run in runs if artifact.is_finished(locations.run_folder(run))]
    if not trained:
        raise MissingArtifactError(
            f"no trained run to {verb}", expected=", ".join(run.label for run in runs),
            run=f"ossicle distill {recipe.name}",
        )  # fmt: skip
    for run in runs:
        if run not in trained:
            console.print(f"{command}: {run.label} is not trained yet; left out")
    return trained
