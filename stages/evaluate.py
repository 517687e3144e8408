"""``ossicle evaluate``: probes on frozen embeddings, with teacher and floors always beside the students.

The evaluation folder holds::

    scores.json        models, tasks, rows (model x task x probe), summary (over seeds), differences (paired, by
                       recording), structure, settings, and what stages.evaluate_statistics lists
    projections.json   task -> {"clip_id", "label", "maps": {model key: [[x, y], ...]}}: t-SNE of the same clips;
                       "umap": likewise, where the recipe asks for it
    predictions/<task>.parquet          row, group, truth, <model key>.<probe> of held-out rows
    seeds.md           runs of one network over their seeds: which is best, by how much, and whether beyond the spread
    sounds.json        digests of what each task's clips sounded like: where one changed, nothing is reused
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe, digest
from pipeline.evaluation import (
    audio_digests,
    probe_answers,
    projection,
    seed_comparison,
    structure,
    vector_store,
)
from pipeline.evaluation.clip_vectors import ClipVectors, embed_clips
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.scoring import (
    RANDOM,
    STUDENT,
    TEACHER,
    Answers,
    Model,
    Score,
    answer_task,
    score_answers,
    summarise,
)
from pipeline.evaluation.window_batch import Windowing
from stages import evaluate_splits, evaluate_suites, evaluation_tasks, locations
from stages.console import progress_bar
from stages.evaluate_statistics import Statistics
from stages.evaluate_suites import ChosenSuite
from stages.evaluate_table import score_table, share_table, structure_table, suite_tables
from stages.run_choice import trained_runs

SCHEMA = "ossicle-evaluation/1"
INT8_FILE = "student_s8s8.onnx"
NEIGHBOURS = 10
CLIPS_AT_LEAST = 5
PREDICTIONS, SCORES, SEEDS, SOUNDS = "predictions", "scores.json", "seeds.md", "sounds.json"


def run(
    recipe: Recipe,
    *,
    console: Console,
    model: str | None = None,
    manifest: Path | None = None,
    label: str = "label",
    group: str | None = None,
) -> Path:
    """Score the recipe's runs, or ``model``, on the recipe's tasks, or on ``manifest``.

    Args:
        recipe: its runs, tasks, teacher and probes.
        console: for the bar and the tables.
        model: ``teacher:NAME``, a run or export folder, or an ONNX file, instead of the recipe's runs.
        manifest: CSV or Parquet of clips, instead of the recipe's tasks.
        label: its label column.
        group: its column of groups that folds must not split.

    Returns:
        The evaluation's folder.

    Raises:
        MissingArtifactError: no run is trained, or there is no manifest.
        ConfigError: an unknown task, or one without its audio.
        WeightsError: the teacher's weights are not there.
    """
    tasks = evaluation_tasks.choose(recipe, console, table=manifest, label=label, group=group)
    suites = evaluate_suites.choose(recipe) if manifest is None else []
    comparison = _comparison(recipe, model, console)
    # The grid came later; it counts where it is used, so that evaluations without suites keep their digest.
    choosing = bool(suites) or any(evaluate_splits.is_split(task) for task in tasks)
    excluded = {"audio_roots", "tasks", "declared"} | (set() if choosing else {"grid"})
    config = {
        "evaluate": recipe.evaluate.model_dump(mode="json", exclude=excluded),
        "window_seconds": recipe.embed.window_seconds,
        "models": {key: asdict(found) for key, found in comparison.models.items()},
        "code": 4 if suites else 3 if choosing else 2,
    }
    inputs = {f"task:{task.task.name}": task.digest() for task in tasks}
    inputs |= {f"suite:{one.suite.name}": one.tracks.digest() for one in suites}
    inputs |= {f"model:{key}": embedder.digest() for key, embedder in comparison.embedders.items()}
    folder = locations.evaluation_folder(recipe)
    if model is not None or manifest is not None:
        asked = digest({"model": model, "manifest": str(manifest), "label": label, "group": group})
        folder = folder.parent / f"{recipe.name}-{asked[:12]}"
    sounds = {task.task.name: [str(path) for path in task.frame["path"]] for task in tasks}
    known = locations.root(recipe) / vector_store.FOLDER
    finished = artifact.is_finished(folder, artifact.identity("evaluation", config, inputs))
    if finished and audio_digests.unchanged(sounds, folder / SOUNDS, known):
        console.print(f"evaluate: reused {folder}")
        _compare_seeds(folder, json.loads((folder / SCORES).read_bytes()), comparison, console)
        return folder
    (folder / artifact.MARKER).unlink(missing_ok=True)
    scores, projections = _evaluate(recipe, tasks, suites, comparison, folder, console)
    artifact.write_json(folder / SCORES, scores)
    artifact.write_json(folder / "projections.json", projections)
    audio_digests.record(sounds, folder / SOUNDS, known)
    artifact.finish(folder, kind="evaluation", config=config, inputs=inputs, summary=_summary(scores))
    _print(scores, console)
    _compare_seeds(folder, scores, comparison, console)
    return folder


def _compare_seeds(folder: Path, scores: dict[str, Any], comparison: Comparison, console: Console) -> None:
    measured = seed_comparison.measured(scores, comparison.overlaps)
    if not seed_comparison.verdicts(measured):
        return
    text = seed_comparison.markdown(measured, scores["recipe"])
    artifact.write_bytes(folder / SEEDS, text.encode())
    console.print(f"evaluate: runs over their seeds: {folder / SEEDS}", soft_wrap=True)


def _comparison(recipe: Recipe, model: str | None, console: Console) -> Comparison:
    comparison = Comparison()
    comparison.add_teacher(recipe.embed, recipe.paths.cache)
    comparison.add_other_teachers(
        recipe.evaluate.teachers, recipe.embed, recipe.paths.cache, recipe.evaluate.declared
    )
    if model is not None:
        comparison.add_reference(model, recipe.embed, recipe.paths.cache)
    else:
        _add_runs(recipe, comparison, console)
    comparison.add_missing_floors(recipe.evaluate.random_floors)
    comparison.add_log_mel(recipe.embed.frontend)
    return comparison


def _add_runs(recipe: Recipe, comparison: Comparison, console: Console) -> None:
    # A regression on the teacher's embeddings has no student to score; the teacher has rows of its own.
    runs = [run for run in recipes.expand(recipe) if run.recipe.train.control != "teacher_lr"]
    for run in trained_runs(runs, recipe, "evaluate", "evaluate", console):
        control = run.recipe.train.control
        comparison.add_run(run.name, run.seed, control, locations.run_folder(run))
        if control != "none" or not run.recipe.export.int8:
            continue
        export = locations.export_folder(run)
        if artifact.is_finished(export) and (export / INT8_FILE).is_file():
            comparison.add_int8(run.name, run.seed, locations.run_folder(run), export / INT8_FILE)
        else:
            console.print(
                f"evaluate: {run.label} is not exported yet; no int8 row (ossicle export {recipe.name})"
            )


def _evaluate(
    recipe: Recipe,
    tasks: list[TaskClips],
    suites: list[ChosenSuite],
    comparison: Comparison,
    folder: Path,
    console: Console,
) -> tuple[dict[str, Any], dict[str, Any]]:
    windowing = Windowing(recipe.embed.window_seconds, recipe.evaluate.max_windows_per_clip)
    root, models, found = locations.root(recipe), comparison.models, Statistics()
    rows: list[Score] = []
    answered: dict[str, Answers] = {}
    described, alike, projections = [], [], {}
    of_splits: list[evaluate_splits.SplitResults] = []
    widths: dict[str, int] = {}
    with progress_bar(console, remaining=True) as progress:
        for clips in tasks:
            name = clips.task.name
            bar = progress.add_task(f"evaluate {name}", total=len(clips.frame))
            vectors = embed_clips(
                clips, comparison.embedders, windowing, root / vector_store.FOLDER,
                lambda done, total, bar=bar: progress.update(bar, completed=done, total=total),  # type: ignore[misc]
            )  # fmt: skip
            progress.update(bar, description=f"evaluate {name}: probes", completed=len(clips.frame))
            if evaluate_splits.is_split(clips):
                of_splits.append(
                    evaluate_splits.score(recipe, clips, vectors, comparison, folder, found, console)
                )
            elif clips.labelled:
                answered[name] = answer_task(
                    clips, vectors.embeddings, recipe.evaluate, root / probe_answers.FOLDER
                )
                table = answered[name].table().to_parquet(index=False)
                artifact.write_bytes(folder / PREDICTIONS / f"{name}.parquet", table)
                rows += score_answers(answered[name], models, recipe.evaluate)
                found.add_answers(clips, models, vectors.embeddings, answered[name], recipe.evaluate)
                heard = {key: vectors.embeddings[key][answered[name].heard] for key in models}
                found.add_few_shot(
                    name, answered[name].labels, answered[name].groups, models, heard, recipe.evaluate, console
                )  # fmt: skip
            if vectors.heard.sum() >= CLIPS_AT_LEAST:
                alike += _structure(name, models, vectors.of_heard)
                found.add_geometry(name, models, vectors.of_heard, recipe.evaluate)
                projections[name] = _projections(recipe, clips.frame, models, vectors)
            else:
                console.print(f"evaluate: {name}: too few clips for structure and projection")
            described += (
                of_splits[-1].tasks if evaluate_splits.is_split(clips) else [_described(clips, vectors)]
            )
            widths |= _widths(vectors)
        of_suites = evaluate_suites.score(recipe, suites, comparison, folder, console, progress, found)
        for name, vectors in of_suites.vectors.items():
            alike += _structure(name, models, vectors.of_heard)
            found.add_geometry(name, models, vectors.of_heard, recipe.evaluate)
            projections[name] = _projections(recipe, of_suites.frames[name], models, vectors)
            widths |= _widths(vectors)
    for one in of_splits:
        rows += one.rows
    rows += of_suites.rows
    described += of_suites.tasks
    apart = [*(d for one in of_splits for d in one.differences), *of_suites.differences]
    found.correct_differences(models, apart)
    found.add_retention(models, rows, answered, recipe.evaluate, evaluate_splits.errors(described))
    found.conditions += [row for one in of_splits for row in one.conditions]
    found.confusions += [row for one in of_splits for row in one.confusions]
    scores = {
        "schema": SCHEMA,
        "recipe": recipe.name,
        "headline": recipe.headline,
        "models": [{**asdict(m), "label": m.label, "dim": widths[m.key]} for m in comparison.models.values()],
        "tasks": described,
        "rows": [row.as_json() for row in rows],
        "summary": evaluate_splits.without_shares_of_errors(summarise(rows), described),
        **found.as_json(),
        "structure": alike,
        "settings": recipe.evaluate.model_dump(mode="json", exclude={"audio_roots", "declared"}),
    }
    return artifact.without_nan(scores), projections


def _widths(vectors: ClipVectors) -> dict[str, int]:
    return {key: int(embedding.shape[1]) for key, embedding in vectors.embeddings.items()}


def _described(clips: TaskClips, vectors: ClipVectors) -> dict[str, Any]:
    frame, task = clips.frame, clips.task
    return {
        "name": task.name, "title": task.title, "about": task.about, "licence": task.licence, "metric": task.metric,
        "labelled": clips.labelled, "clips": len(frame), "groups": int(frame["group"].nunique()),
        "classes": {str(k): int(v) for k, v in frame["label"].value_counts().sort_index().items()},
        "folds": sorted(int(fold) for fold in frame["fold"].unique()) if clips.labelled else [],
        "left_out": clips.left_out, "unusable": [asdict(clip) for clip in vectors.unusable],
    }  # fmt: skip


def _structure(
    task: str, models: dict[str, Model], embeddings: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Return CKA and neighbour overlap of every model with the teacher, and its effective rank."""
    teacher = next((key for key, model in models.items() if model.role == TEACHER), None)
    rows = []
    for key, model in models.items():
        embedding = embeddings[key]
        row: dict[str, Any] = {
            "task": task,
            "model": key,
            "role": model.role,
            "name": model.name,
            "seed": model.seed,
        }
        row["effective_rank"] = structure.effective_rank(embedding)
        if teacher is not None:
            reference = embeddings[teacher]
            neighbours = min(NEIGHBOURS, len(embedding) - 1)
            row["linear_cka"] = structure.linear_cka(embedding, reference)
            row["neighbour_overlap"] = structure.neighbour_overlap(embedding, reference, neighbours)
            row["neighbours"] = neighbours
        rows.append(row)
    return rows


def _projections(
    recipe: Recipe, frame: pd.DataFrame, models: dict[str, Model], vectors: ClipVectors
) -> dict[str, Any]:
    """Return the maps of the teacher, one student (the headline run where there is one) and one floor."""
    students = [m for m in models.values() if m.role == STUDENT]
    shown = [m.key for m in models.values() if m.role == TEACHER][:1]
    headline = [m for m in students if m.name == recipe.headline] or students
    if headline:
        floors = [m.key for m in models.values() if m.role == RANDOM and m.floor == headline[0].floor]
        shown += [headline[0].key, *floors[:1]]
    kept, embeddings, seed = frame[vectors.heard], vectors.of_heard, recipe.evaluate.seed
    stored: dict[str, Any] = {
        "clip_id": list(kept["clip_id"]),
        "label": list(kept["label"]),
        "maps": {key: projection.tsne(embeddings[key], seed).round(3).tolist() for key in shown},
    }
    if recipe.evaluate.umap:
        stored["umap"] = {key: projection.umap(embeddings[key], seed).round(3).tolist() for key in shown}
    return stored


def _summary(scores: dict[str, Any]) -> dict[str, Any]:
    shown = [row for row in scores["summary"] if row["role"] in (STUDENT, TEACHER)]
    keys = ("task", "probe", "role", "name", "seeds", "mean", "share", "retention")
    return {"scores": [{key: row[key] for key in keys} for row in shown]}


def _print(scores: dict[str, Any], console: Console) -> None:
    for task in scores["tasks"]:
        if task["unusable"]:
            console.print(
                f"evaluate: {task['name']}: {len(task['unusable'])} clips cannot be decoded (scores.json)"
            )
    if scores["summary"]:
        if any("suite" not in task for task in scores["tasks"]):
            console.print(score_table(scores))
        for table in suite_tables(scores):
            console.print(table)
        console.print(share_table(scores))
    console.print(structure_table(scores))
