"""What sweeps and searches share with the other stages: the run that is varied, and the jobs of what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe, SearchConfig, SweepConfig
from pipeline.errors import ConfigError, near_matches
from pipeline.recipe import Run
from pipeline.search.study import SharedStudy
from pipeline.training.job import Job
from stages import locations

JOURNAL = "journal.log"


def base_of(recipe: Recipe, only: str | None) -> Recipe:
    """Return the run that is varied, as a recipe of its own: the run called so, the headline, or the first.

    Raises:
        ConfigError: no run is called ``only``.
    """
    runs = recipes.expand(recipe)
    if only is not None and only not in recipe.runs:
        raise ConfigError(
            f"the recipe has no run {only!r}", expected=near_matches(only, recipe.runs or [recipe.student.name]),
            got=only,
        )  # fmt: skip
    wanted = only or recipe.headline
    chosen = [run for run in runs if run.name == wanted] if wanted is not None else []
    chosen = chosen or [run for run in runs if run.recipe.train.control == "none"] or runs
    return chosen[0].recipe.model_copy(
        update={"runs": {}, "headline": None, "sweep": SweepConfig(), "search": SearchConfig()}
    )


def job_of(recipe: Recipe) -> Job:
    """Return the job of a recipe without runs: ``ossicle distill`` of that recipe would do the same one."""
    run: Run = recipes.expand(recipe)[0]
    return Job(
        run, locations.store_folder(recipe), locations.run_folder(run), locations.run_config(run),
        locations.run_inputs(run),
    )  # fmt: skip


def identity(kind: str, config: dict[str, Any], base: Recipe) -> str:
    """Return the digest that names a study: the run that is varied, the space, the figure."""
    run = recipes.expand(base)[0]
    return artifact.identity(kind, {**config, "base": locations.run_config(run)}, locations.run_inputs(run))


def storage_of(storage: str | None, folder: Path) -> str | Path:
    """Return where the study is kept; the folder's journal unless a place is named."""
    return folder / JOURNAL if storage is None else storage


def announce(console: Any, command: str, study: SharedStudy, place: str, budget: int, so_far: int) -> None:
    """Say which study this is, and how far it is."""
    there = f", {so_far} of {budget} trials are there" if so_far else f", {budget} trials"
    console.print(f"{command}: study {study.name} in {place}{there}", markup=False)
