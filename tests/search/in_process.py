"""Trains the runs of sweeps and searches in this process: what they train is real, only the process is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.search import toml_text, trainer
from pipeline.training.job import Job, run_job
from pipeline.training.pool import Outcome
from stages import search
from tests.training.small_store import small_recipe, write_store

Event = dict[str, Any]


def train_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Train in this process from now on; return the list of folders that were really trained."""
    trained: list[str] = []

    def train_all(
        jobs: Sequence[Job], limit: int, on_event: Callable[[Job, Event], None] = lambda job, event: None
    ) -> dict[str, Outcome]:
        found = {}
        for job in jobs:
            trained.append(job.folder.name)
            on_event(job, {"event": "start"})
            done = run_job(
                job,
                on_progress=lambda now, job=job: on_event(  # type: ignore[misc]
                    job,
                    {"event": "progress", "step": now.step, "steps": now.steps, "loss": now.loss,
                     "samples_per_second": 1.0},
                ),
            )  # fmt: skip
            found[job.run.label] = Outcome("done", summary=done.summary)
        return found

    monkeypatch.setattr(trainer, "train_all", train_all)
    monkeypatch.setattr(search, "train_all", train_all)
    return trained


def small_study(folder: Path, **changes: Any) -> Recipe:
    """Write a store and return a recipe on it, whose file is ``folder/small.toml``."""
    recipe = small_recipe(
        **{
            "embed.window_seconds": 0.4, "jobs": 1, "train.steps": 12, "train.validate_every": 4,
            "paths.store": str(folder / "store"), "paths.artifacts": str(folder / "artifacts"), **changes,
        }
    )  # fmt: skip
    write_store(folder / "store", recipe)
    (folder / "small.toml").write_text(toml_text.recipe_text(recipe), encoding="utf-8")
    return recipes.load(folder / "small.toml")
