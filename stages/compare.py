"""``ossicle compare``: models side by side, whoever made them, on the same clips and at the same costs.

The folder holds ``compare.json`` (models, tasks, scores, paired differences, structure, store, costs) and
``compare.html``, one page that needs nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.errors import ConfigError, MissingArtifactError, OssicleError
from pipeline.evaluation import store_overlap, structure, vector_store
from pipeline.evaluation.clip_vectors import ClipVectors, embed_clips
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.scoring import answer_task, differences, score_answers
from pipeline.evaluation.window_batch import Windowing
from pipeline.measure import latency
from stages import compare_page, compare_table, evaluation_tasks, locations
from stages.compare_costs import CostBook, reason
from stages.compare_models import Compared, CostInput, Declared, open_models
from stages.console import progress_bar

SCHEMA = "ossicle-compare/1"
RESULT, PAGE = "compare.json", "compare.html"
NEIGHBOURS = 10


def run(
    recipe: Recipe,
    references: Sequence[str],
    *,
    console: Console,
    declared: Declared,
    tasks_wanted: bool = True,
    manifest: Path | None = None,
    label: str = "label",
    group: str | None = None,
    store: str | None = None,
    teacher: str | None = None,
    arm: bool = False,
) -> Path:
    """Score and measure every model, print one table, and write the JSON and the page.

    Args:
        recipe: its tasks, probes, windows, emulated processors and folders.
        references: models; the first is what the others are compared with.
        console: for the bar and the table.
        declared: what foreign files hear.
        tasks_wanted: False = costs alone where the recipe's manifest is not there, instead of an error.
        manifest: CSV or Parquet of clips, instead of the recipe's tasks; ``label``, ``group``: its columns.
        store: a store whose embeddings the neighbours are compared with.
        teacher: whose, where it holds several.
        arm: count executed ARM instructions too.

    Returns:
        The comparison's folder.

    Raises:
        ConfigError: fewer than two models, or one that cannot be compared.
        MissingArtifactError: a model, the manifest or the store is not there.
        WeightsError: a file is no ONNX file, or gives no embedding.
    """
    if len(references) < 2:
        raise ConfigError("one model has nothing to be compared with", expected="two or more", got=references)
    models = open_models(references, recipe.embed, recipe.paths.cache, declared)
    tasks = _tasks(recipe, console, tasks_wanted, manifest, label, group)
    bench = recipe.benchmark
    config = {
        "evaluate": recipe.evaluate.model_dump(mode="json", exclude={"audio_roots", "tasks", "grid"}),
        "window_seconds": recipe.embed.window_seconds,
        "benchmark": bench.model_dump(mode="json", include={"latency_runs", "latency_seconds", "arm_cpus"}),
        "arm": arm, "machine": latency.processor()["name"], "store": store, "teacher": teacher, "code": 1,
        "models": [
            [one.label, one.licence, one.hears, _file_of(one.cost), _file_of(one.frontend_cost)] for one in models
        ],
    }  # fmt: skip
    inputs = {f"task:{task.task.name}": task.digest() for task in tasks}
    inputs |= {f"model:{number}": one.model.source for number, one in enumerate(models)}
    work = artifact.identity("compare", config, inputs)
    root = locations.root(recipe)
    folder = artifact.folder_for(root, "compare", "models", work)
    if artifact.is_finished(folder, work):
        console.print(f"compare: reused {folder}")
    else:
        record = _compare(recipe, models, tasks, store, teacher, arm, root, console)
        artifact.write_json(folder / RESULT, record)
        artifact.write_bytes(folder / PAGE, compare_page.render(record).encode())
        artifact.finish(folder, kind="compare", config=config, inputs=inputs)
    record = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    console.print(compare_table.text(record), markup=False, soft_wrap=True)
    for note in compare_table.notes(record):
        console.print(f"compare: {note}", markup=False)
    return folder


def _file_of(cost: CostInput | None) -> str:
    return "" if cost is None else artifact.file_digest(cost.path)


def _tasks(
    recipe: Recipe, console: Console, wanted: bool, manifest: Path | None, label: str, group: str | None
) -> list[TaskClips]:
    try:
        return evaluation_tasks.choose(
            recipe, console, stage="compare", table=manifest, label=label, group=group
        )
    except MissingArtifactError as error:
        if wanted or manifest is not None:
            raise
        console.print(f"compare: costs alone: {error.problem} (--manifest CLIPS.csv or --recipe RECIPE)")
        return []


def _compare(
    recipe: Recipe,
    models: list[Compared],
    tasks: list[TaskClips],
    store: str | None,
    teacher: str | None,
    arm: bool,
    root: Path,
    console: Console,
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "schema": SCHEMA, "window_seconds": recipe.embed.window_seconds, "recipe": recipe.name,
        "machine": latency.processor(), "provenance": artifact.provenance(), "baseline": models[0].model.key,
        "models": [], "tasks": [], "scores": [], "differences": [], "structure": [], "store": None,
        "costs": {}, "frontends": {},
    }  # fmt: skip
    widths: dict[str, int] = {}
    with progress_bar(console) as progress:
        for clips in tasks:
            bar = progress.add_task(f"compare {clips.task.name}", total=len(clips.frame))
            vectors = embed_clips(
                clips, {one.model.key: one.embedder for one in models},
                Windowing(recipe.embed.window_seconds, recipe.evaluate.max_windows_per_clip),
                root / vector_store.FOLDER,
                lambda done, total, bar=bar: progress.update(bar, completed=done, total=total),  # type: ignore[misc]
            )  # fmt: skip
            progress.update(bar, completed=len(clips.frame))
            widths |= {key: int(vectors.embeddings[key].shape[1]) for key in vectors.embeddings}
            _score(record, recipe, models, clips, vectors)
        if store is not None:
            record["store"] = _on_store(store, teacher, models)
        bar = progress.add_task("costs", total=len(models))
        _costs(record, recipe, models, arm, root, lambda: progress.advance(bar))
    record["models"] = [
        {
            "key": one.model.key, "label": one.label, "reference": one.reference, "kind": one.kind,
            "role": one.model.role, "licence": one.licence, "hears": one.hears, "digest": one.model.source,
            "dim": widths.get(one.model.key),
        }
        for one in models
    ]  # fmt: skip
    cleaned: dict[str, Any] = artifact.without_nan(record)
    return cleaned


def _score(
    record: dict[str, Any], recipe: Recipe, models: list[Compared], clips: TaskClips, vectors: ClipVectors
) -> None:
    """Add one task's scores, differences and structure to the record."""
    task, by_key = clips.task, {one.model.key: one.model for one in models}
    record["tasks"].append({
        "name": task.name, "title": task.title, "metric": task.metric, "licence": task.licence,
        "labelled": clips.labelled, "clips": len(clips.frame), "groups": int(clips.frame["group"].nunique()),
        "unusable": len(vectors.unusable),
    })  # fmt: skip
    teacher = next((one.model.key for one in models if one.teacher is not None), None)
    if clips.labelled:
        answers = answer_task(clips, vectors.embeddings, recipe.evaluate)
        rows = score_answers(answers, by_key, recipe.evaluate)
        best = {row.probe: row.score for row in rows if row.model == teacher}
        for row in rows:
            kept = row.score / best[row.probe] if best.get(row.probe) and row.model != teacher else None
            shown = {
                key: getattr(row, key) for key in ("model", "task", "probe", "score", "low", "high", "folds")
            }
            record["scores"].append({**shown, "retention": kept})
        record["differences"] += [
            {**asdict(found), "decided": found.decided} for found in differences(answers, recipe.evaluate)
        ]
    heard = vectors.heard
    if teacher is None or heard.sum() <= NEIGHBOURS:
        return
    reference = vectors.embeddings[teacher][heard]
    for key in (key for key in by_key if key != teacher):
        embedding = vectors.embeddings[key][heard]
        record["structure"].append({
            "task": task.name, "model": key, "teacher": teacher, "neighbours": NEIGHBOURS,
            "neighbour_overlap": structure.neighbour_overlap(embedding, reference, NEIGHBOURS),
            "linear_cka": structure.linear_cka(embedding, reference),
        })  # fmt: skip


def _on_store(store: str, teacher: str | None, models: list[Compared]) -> dict[str, Any]:
    """Return the neighbour overlap of every model that hears a log-mel of the store, and why others have none."""
    place = locations.place_of(store)
    found: dict[str, Any] = {"place": store, "overlap": {}, "not_measured": {}}
    for one in models:
        embedder: Any = one.embedder
        if one.frontend is None:
            found["not_measured"][one.model.key] = "a store holds log-mels, and it hears " + one.hears
            continue
        try:
            rows = store_overlap.read_rows(place, one.frontend, teacher)
            found["overlap"][one.model.key] = store_overlap.overlap(embedder, rows)
        except OssicleError as error:
            if isinstance(error, MissingArtifactError):
                raise
            found["not_measured"][one.model.key] = reason(error)
            continue
        found |= {"teacher": rows.teacher, "split": rows.split, "rows": len(rows.embeddings)}
    if not found["overlap"]:
        why = "; ".join(dict.fromkeys(found["not_measured"].values()))
        raise ConfigError(
            "no model can be compared on the store", expected="a log-mel that it holds", got=why
        )
    return found


def _costs(
    record: dict[str, Any], recipe: Recipe, models: list[Compared], arm: bool, root: Path, advance: Any
) -> None:
    book = CostBook(
        root / "compare" / "costs", sorted((root / "benchmark").glob("*/benchmark.json")), recipe.benchmark,
        recipe.paths.cache,
    )  # fmt: skip
    for one in models:
        if one.teacher is not None:
            record["costs"][one.model.key] = book.of_teacher(one.teacher)
        elif one.cost is None:
            record["costs"][one.model.key] = {"not_measured": {"cost": one.no_cost}}
        else:
            record["costs"][one.model.key] = book.of_file(one.cost, arm_too=arm)
        if one.frontend_cost is not None:
            record["frontends"][one.model.key] = book.of_file(one.frontend_cost, arm_too=arm)
        advance()
