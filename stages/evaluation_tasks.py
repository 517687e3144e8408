"""Which tasks a recipe's models are scored on, and on which clips: for every stage that scores."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pipeline import manifest as manifests
from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError
from pipeline.evaluation import clips as task_clips
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.dataset_clips import from_dataset
from pipeline.evaluation.suite import suite_names
from pipeline.evaluation.task import read_task
from stages import locations


def choose(
    recipe: Recipe,
    console: Console,
    *,
    stage: str = "evaluate",
    table: Path | None = None,
    label: str = "label",
    group: str | None = None,
) -> list[TaskClips]:
    """Return the clips of each of the recipe's tasks that can be scored here, or of ``table`` alone.

    Suites are no such tasks and are passed over; a recipe that names suites alone gives none.

    Args:
        recipe: its tasks and audio roots.
        console: for what is left out.
        stage: who asks, for what is printed.
        table: CSV or Parquet of clips, instead of the recipe's tasks; ``label``, ``group``: its columns.

    Raises:
        MissingArtifactError: there is no manifest, or no such table.
        ConfigError: an unknown task, or one without its audio.
        ManifestError: the table cannot be used.
    """
    if table is not None:
        return [task_clips.from_table(task_clips.table_task(table, label, group), table)]
    roots = recipe.evaluate.audio_roots
    names = [*recipe.evaluate.tasks, *(name for name in roots if name not in recipe.evaluate.tasks)]
    suites = suite_names(recipes.DATA_MANIFESTS / "suites")
    passed_over = [name for name in names if name in suites]
    if passed_over and stage != "evaluate":
        console.print(f"{stage}: {', '.join(passed_over)}: a suite is scored by ossicle evaluate alone")
    if passed_over and len(passed_over) == len(names):
        return []
    known = manifests.read(locations.manifest_folder(recipe))
    found = []
    for name in (name for name in names if name not in suites):
        task = read_task(name, recipes.DATA_MANIFESTS / "tasks")
        if task.folds.kind == "split" and stage != "evaluate":
            console.print(
                f"{stage}: {name}: a task of the dataset's own splits is scored by ossicle evaluate alone"
            )
            continue
        if task.audio.source != "manifest":
            if name not in roots:
                raise ConfigError(
                    f"task {name!r} needs its audio",
                    expected=f"a folder with {task.audio.file or task.audio.dataset + ' unpacked'}",
                    run=f"--set evaluate.audio_roots.{name}=FOLDER",
                )
            read = task_clips.from_csv if task.audio.source == "csv" else from_dataset
            found.append(read(task, roots[name]))
            continue
        clips = task_clips.from_manifest(task, known)
        if clips is None:
            console.print(f"{stage}: no clips of {task.audio.dataset} in the manifest; {name} is left out")
        else:
            found.append(clips)
    if not found:
        found = [task_clips.own_labels(known) or task_clips.unlabelled(known, recipe.evaluate.seed)]
        what = "the manifest's own labels" if found[0].labelled else "unlabelled clips, structure alone"
        console.print(f"{stage}: none of the recipe's tasks is possible; using {what}")
    for clips in found:
        for name, count in clips.left_out.items():
            console.print(
                f"{stage}: {clips.task.name}: class {name} has too few members ({count} clips), left out"
            )
    return found
