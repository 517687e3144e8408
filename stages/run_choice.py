"""Which runs of a recipe ``--only`` names."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError, near_matches
from pipeline.recipe import Run


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
