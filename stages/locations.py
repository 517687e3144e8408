"""Where each artifact of a recipe lies: names from content, so that the same work is found and never redone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.errors import DigestMismatchError, MissingArtifactError
from pipeline.recipe import Run
from pipeline.store import schema
from pipeline.store.commits import finished_arrays

# What a run's numbers do not depend on: where it runs, and how many threads it uses.
_INCIDENTAL = {"device", "threads", "tensorboard"}


def root(recipe: Recipe) -> Path:
    """Return the folder of all artifacts."""
    return recipe.paths.artifacts


def manifest_config(recipe: Recipe) -> dict[str, Any]:
    """Return what the manifest depends on, the audio's own content apart."""
    fetch = recipe.fetch.model_dump(mode="json", exclude={"teacher_weights"})
    keys = {"validation_share", "seed", "min_seconds"}
    return {"fetch": fetch, "manifest": recipe.manifest.model_dump(mode="json", include=keys), "code": 1}


def manifest_folder(recipe: Recipe) -> Path:
    """Return the manifest's folder, made or not."""
    work = artifact.identity("manifest", manifest_config(recipe), {})
    return artifact.folder_for(root(recipe), "manifest", "clips", work)


def store_config(recipe: Recipe) -> dict[str, Any]:
    """Return the windowing and views that name the store; teachers and frontends add arrays inside it."""
    embed = recipe.embed.model_dump(mode="json", include={"window_seconds", "seed", "shard_rows"})
    embed["views"] = recipe.embed.views.content()
    windows = recipe.manifest.model_dump(mode="json", include={"max_windows_per_clip", "caps", "peak_floor"})
    return {"embed": embed, "windows": windows, "code": 1}


def store_inputs(recipe: Recipe) -> dict[str, str]:
    """Return the digest of the manifest that the store was made from (the manifest must be there)."""
    record = artifact.read(manifest_folder(recipe), run=f"make manifest RECIPE={recipe.name}")
    return {"manifest": record.summary["content"]}


def store_folder(recipe: Recipe) -> Path:
    """Return the store's folder, made or not; the manifest must be there, its audio need not.

    Not named after the recipe: recipes that cut the same windows of the same clips share one store.
    """
    work = artifact.identity("store", store_config(recipe), store_inputs(recipe))
    return artifact.folder_for(root(recipe), "store", "windows", work)


def run_config(run: Run) -> dict[str, Any]:
    """Return what a run's weights depend on, its inputs apart."""
    recipe = run.recipe
    sections = {
        name: getattr(recipe, name).model_dump(mode="json") for name in ("student", "targets", "loss")
    }
    unused = _INCIDENTAL if recipe.train.control == "labels" else _INCIDENTAL | {"label_column"}
    return {**sections, "train": recipe.train.model_dump(mode="json", exclude=unused), "code": 1}


def run_inputs(run: Run) -> dict[str, str]:
    """Return the digests of the store's rows, its frontend array and its teacher array.

    Raises:
        MissingArtifactError: the store, or the array asked for, is not there yet.
    """
    folder = store_folder(run.recipe)
    work = artifact.identity("store", store_config(run.recipe), store_inputs(run.recipe))
    meta = schema.read_meta(folder)
    frontend = schema.frontend_digest(run.recipe.embed.frontend)
    return {"store": work, "frontend": frontend, "teacher": teacher_digest(meta, run.recipe)}


def teacher_digest(meta: schema.StoreMeta, recipe: Recipe) -> str:
    """Return the digest of the one embedding array that the recipe's teacher wrote.

    Raises:
        MissingArtifactError: the teacher has written none.
        DigestMismatchError: it has written several (other weights or precision); the newest is not guessed.
    """
    name = recipe.embed.teacher.name
    # An array that an interrupted run left unfinished is no candidate, once another is complete.
    finished = finished_arrays(store_folder(recipe))
    named = [spec for spec in meta.arrays if spec.kind == "embedding" and spec.name == name]
    found = [spec.digest for spec in named if spec.path in finished] or [spec.digest for spec in named]
    if not found:
        raise MissingArtifactError(
            f"the store holds no embedding of {name}", run=f"make embed RECIPE={recipe.name}"
        )
    if len(found) > 1:
        raise DigestMismatchError(
            f"the store holds {len(found)} embeddings of {name}",
            expected="one",
            got=", ".join(d[:12] for d in found),
            run="ossicle store inspect, then give each store its own recipe name",
        )
    return found[0]


def run_folder(run: Run) -> Path:
    """Return the folder of one training run, made or not."""
    work = artifact.identity("run", run_config(run), run_inputs(run))
    return artifact.folder_for(root(run.recipe), "run", run.label, work)


def export_config(run: Run) -> dict[str, Any]:
    """Return what an export depends on, its run apart."""
    return {"export": run.recipe.export.model_dump(mode="json"), "code": 1}


def export_inputs(run: Run) -> dict[str, str]:
    """Return the digest of the run that is exported."""
    return {"run": artifact.read(run_folder(run), run=f"make distill RECIPE={run.recipe.name}").digest}


def export_folder(run: Run) -> Path:
    """Return the folder of one run's exported files, made or not."""
    work = artifact.identity("export", export_config(run), export_inputs(run))
    return artifact.folder_for(root(run.recipe), "export", run.label, work)


def evaluation_folder(recipe: Recipe) -> Path:
    """Return the folder of the recipe's scores; what is inside says which runs they are of."""
    return root(recipe) / "evaluation" / recipe.name


def benchmark_folder(recipe: Recipe) -> Path:
    """Return the folder of the recipe's cost figures."""
    return root(recipe) / "benchmark" / recipe.name


def report_folder(recipe: Recipe) -> Path:
    """Return the folder of the recipe's report."""
    return root(recipe) / "report" / recipe.name
