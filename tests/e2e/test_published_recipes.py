"""The published systems' recipes, from a dataset's folder and teachers' files to trained students, controls included.

`make recipes` trains every run of each; the default test trains one for every student, objective and control.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.embedding import pool
from pipeline.recipe import Run
from pipeline.training.job import run_job
from stages import distill, embed, finetune, manifest
from tests.e2e.published_datasets import DATASETS, tau
from tests.e2e.published_teachers import trusted
from tests.golden import golden_vectors as golden
from tests.stages.in_process import embed_shards

WHOLE = os.environ.get("OSSICLE_RECIPES") == "all"
QUIET = Console(quiet=True)
SMALL: dict[str, Any] = {
    "embed.window_seconds": 1.0, "embed.shard_rows": 16, "embed.chunk_rows": 8, "embed.workers": 1, "jobs": 1,
    "train.steps": 2, "train.batch_size": 8, "train.warmup_steps": 1, "train.validate_every": 1, "train.amp": "off",
    "train.early_stopping": 0, "train.time_mask_frames": 8, "student.width": 0.25, "sampling.epoch_rows": None,
    "sampling.clusters": 4,
    "manifest.validation_share": 0.2,
}  # fmt: skip
SMALL_TEACHERS = (
    "finetune.steps=2", "finetune.batch_size=4", "finetune.warmup_steps=1", "finetune.validate_every=2",
    "finetune.amp=off", "student.width=0.25",
)  # fmt: skip
# Of the published size whatever the file says: only `make recipes` runs them.
LARGE = {"panns_cnn14", "mule"}
# `thesis_both` and `embedding_compression` go the ways of three, and the chain of teachers has tests of its own;
# `make test-all` and `make recipes` run them too.
FURTHER = {"embedding_compression_hcnn", "good_teacher", "thesis_internal", "thesis_audioset"}


@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.exhaustive) if name in FURTHER else name
        for name in sorted(DATASETS)
    ],
)
def test_recipe_runs_to_trained_students(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden.recipe()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pool, "embed_shards", embed_shards)
    for write in DATASETS[name]:
        write(tmp_path / "data")
    recipe = shrunk(recipes.load(name), tmp_path / "weights")
    manifest.run(recipe, console=QUIET)
    if name == "good_teacher":
        fine_tune_teachers(tmp_path / "weights")
    embed.run(recipe, console=QUIET)
    trained = set()
    for job in distill.jobs_of(recipe):
        run_job(job)
        summary = artifact.read(job.folder).summary
        # The overlap of neighbours wants more held-out windows than every miniature has.
        figures = {k: v for k, v in summary.items() if isinstance(v, float) and "neighbour" not in k}
        assert all(map(math.isfinite, figures.values())), job.run.label
        trained.add(job.run.name)
    assert trained == set(recipe.runs)
    if not WHOLE:
        assert len(trained) >= 3


@pytest.mark.skipif(not WHOLE, reason="fine-tunes every teacher: make recipes")
@pytest.mark.timeout(1_800)
def test_every_scene_teacher_is_fine_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden.recipe()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tau(tmp_path / "data")
    names = set(recipes.load("tau_teachers").runs)
    fine_tune_teachers(tmp_path / "weights", names)
    folders = Path("artifacts/finetune").glob("tau_teachers-*-seed*")
    found = {path.name.split("-")[1]: artifact.read(path).summary for path in folders}
    assert set(found) == names
    assert all(0 <= summary["accuracy"] <= 1 for summary in found.values())


def shrunk(recipe: Recipe, weights: Path) -> Recipe:
    """Return the recipe at a size for tests, its teachers' files written."""
    dumped = recipe.model_dump(mode="python")
    teachers = [dumped["embed"]["teacher"], *dumped["embed"]["more_teachers"]]
    called = [teacher["options"].get("name", teacher["name"]) for teacher in teachers]
    kept = [(t, n) for t, n in zip(teachers, called, strict=True) if WHOLE or n not in LARGE]
    ready = [t if t["name"] == "ensemble" else trusted(t, weights) for t, _ in kept]
    names = {n for _, n in kept}
    runs = {
        run.name: dumped["runs"][run.name] | {"seeds": (0,)}
        for run in chosen(recipes.expand(recipe))
        if set(run.recipe.targets.teachers) <= names
    }
    changes = {
        **SMALL,
        "embed.teacher": ready[0],
        "embed.more_teachers": ready[1:],
        "runs": runs,
        "headline": None,
    }
    return recipes.change(recipe, changes)


def chosen(runs: Iterable[Run]) -> list[Run]:
    """Return all runs, or as few as hold every student, loss, target, control and way of sampling."""
    if WHOLE:
        return list(runs)
    found: dict[str, Run] = {}
    seen: set[str] = set()
    for run in runs:
        recipe = run.recipe
        parts = {
            f"student {recipe.student.name}", f"loss {recipe.loss.counted()}", f"control {recipe.train.control}",
            f"targets {recipe.targets.head} {recipe.targets.compression}", f"teachers {recipe.targets.teachers}",
            f"sampling {recipe.sampling.balance}", f"logits {recipe.loss.logits}",
        }  # fmt: skip
        if not parts <= seen:
            seen |= parts
            found[run.name] = run
    return list(found.values())


def fine_tune_teachers(weights: Path, names: Collection[str] = ("cp_resnet_dirfms", "passt_dirfms")) -> None:
    """Fine-tune what good_teacher's ensembles are made of, or ``names``; PaSST's file is one of ours."""
    teachers = recipes.load("tau_teachers", SMALL_TEACHERS)
    passt = trusted({"name": "passt_s", "options": {}}, weights)
    runs = {name: run.model_dump() for name, run in teachers.runs.items() if name in names}
    runs["passt_dirfms"]["set"] |= {"finetune.teacher": passt}
    manifest.run(teachers, console=QUIET)
    finetune.run(recipes.change(teachers, {"runs": runs, "headline": None}), console=QUIET)
