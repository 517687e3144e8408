"""Scores of embeddings on tasks with a development and a test split, one by one and in the mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import config
from pipeline.config import EvaluateConfig
from pipeline.errors import OssicleError
from pipeline.evaluation import bootstrap, group_intervals, metrics, significance
from pipeline.evaluation.probes import PROBES
from pipeline.evaluation.scoring import TEACHER, Difference, Model, Score
from pipeline.evaluation.split_answers import SplitAnswers
from pipeline.evaluation.split_probes import Answer
from pipeline.evaluation.split_task import SplitTask, Unit

Matrices = Mapping[Unit, Mapping[str, np.ndarray]]


@dataclass
class SplitScores:
    """What the models scored.

    Attributes:
        rows: model x task x probe, the mean over tasks last.
        differences: every model less the teacher, and every two others, on the same draws.
        predictions: task to a table of the test rows: ``row``, ``group``, ``truth``, ``<model key>.<probe>``.
        answers: (model key, task, probe) to the answers themselves, with their probabilities.
    """

    rows: list[Score] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    predictions: dict[str, pd.DataFrame] = field(default_factory=dict)
    answers: dict[tuple[str, str, str], Answer] = field(default_factory=dict)


def score_split_tasks(
    tasks: Sequence[SplitTask],
    models: Mapping[str, Model],
    matrices: Matrices,
    settings: EvaluateConfig,
    mean_name: str,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    cache: Path | None = None,
) -> SplitScores:
    """Score every model on every task with every probe.

    Tasks of the same rows share the standardised features, folds and neighbours. All tasks' intervals come from the
    same draws of test tracks, so that their mean (``mean_name``) and paired differences have intervals too.

    Args:
        tasks: rows without sound already left out.
        models: by key.
        matrices: unit to model key to embeddings.
        settings: grid, resamples and seed.
        mean_name: what the mean over the tasks is called.
        on_progress: called with (model, task) pairs done and in all.
        cache: folder of earlier answers, see :mod:`~pipeline.evaluation.split_answers`; None = none.

    Raises:
        OssicleError: an embedding is not finite, or a probe cannot be fitted.
    """
    found = SplitScores(predictions={task.name: _table(task) for task in tasks})
    universe = np.unique(np.concatenate([task.groups[task.held_out] for task in tasks]))
    values: dict[tuple[str, str, str], float] = {}
    drawn: dict[tuple[str, str, str], np.ndarray] = {}
    done = 0
    for key, model in models.items():
        shared: dict[str, SplitAnswers] = {}
        for task in tasks:
            probes = shared.get(_same_rows(task))
            if probes is None:
                embedding = matrices[task.unit][key][task.rows]
                probes = SplitAnswers(embedding, task, settings.grid, settings.seed, cache)
                shared = {_same_rows(task): probes}
            for probe in PROBES:
                answer = probes.answer(probe, task)
                truth, groups = task.truth[task.held_out], task.groups[task.held_out]
                value = metrics.score(task.metric, truth, answer.prediction)
                place = (key, task.name, probe)
                found.answers[place] = answer
                values[place] = value
                drawn[place] = group_intervals.draws(
                    task.metric, truth, answer.prediction, groups,
                    resamples=settings.bootstrap, seed=settings.seed, universe=universe,
                )  # fmt: skip
                found.predictions[task.name][f"{key}.{probe}"] = _column(answer.prediction)
                found.rows.append(
                    _row(
                        model, task.name, probe, value, drawn[place], strength=answer.strength,
                        development_score=answer.development_score, at_edge=answer.at_edge,
                    )
                )  # fmt: skip
            done += 1
            on_progress(done, len(models) * len(tasks))
    for key, model in models.items():
        for probe in PROBES:
            place = (key, mean_name, probe)
            values[place] = float(np.mean([values[key, task.name, probe] for task in tasks]))
            drawn[place] = np.mean([drawn[key, task.name, probe] for task in tasks], axis=0)
            found.rows.append(_row(model, mean_name, probe, values[place], drawn[place]))
    names = [*(task.name for task in tasks), mean_name]
    found.differences = _differences(names, models, values, drawn)
    return found


def heard_tasks(
    tasks: Sequence[SplitTask], heard: Mapping[Unit, np.ndarray], reason: str = "no sound"
) -> list[SplitTask]:
    """Return the tasks without the rows whose track or second no model could hear.

    Args:
        tasks: as the table has them.
        heard: unit to whether each of its embeddings is of a sound.
        reason: what such rows are counted under.

    Raises:
        ManifestError: a split of a task has nothing to tell apart any more.
    """
    return [task.where(heard[task.unit][task.rows], reason) for task in tasks]


def described(task: SplitTask, licence: str) -> dict[str, Any]:
    """Return the task as ``scores.json`` describes it."""
    test = task.truth[task.held_out]
    held_out = task.groups[task.held_out]
    return {
        "name": task.name, "title": task.title, "about": task.about, "licence": licence, "metric": task.metric,
        "labelled": True, "clips": len(task.rows), "groups": len(np.unique(task.groups)), "unit": task.unit,
        "classes": _members(task), "folds": [0],
        "test_rows": len(test), "test_groups": len(np.unique(held_out)), "left_out": task.left_out, "unusable": [],
    }  # fmt: skip


def _members(task: SplitTask) -> dict[str, int]:
    if task.tags:
        return {name: int((task.truth[:, place] == 1).sum()) for place, name in enumerate(task.tags)}
    return {name: int((task.truth == name).sum()) for name in task.classes}


def _row(
    model: Model,
    task: str,
    probe: str,
    value: float,
    drawn: np.ndarray,
    *,
    strength: float | None = None,
    development_score: float | None = None,
    at_edge: bool = False,
) -> Score:
    low, high = bootstrap.bounds(drawn)
    return Score(
        model.key, model.role, model.name, model.label, model.seed, model.floor, task, probe, value, low, high,
        [value], strength, development_score, at_edge,
    )  # fmt: skip


def _differences(
    tasks: Sequence[str],
    models: Mapping[str, Model],
    values: Mapping[tuple[str, str, str], float],
    drawn: Mapping[tuple[str, str, str], np.ndarray],
) -> list[Difference]:
    """Return the later model less the earlier, teachers first, on the same draws."""
    keys = sorted(models, key=lambda key: models[key].role != TEACHER)
    found = []
    for task in tasks:
        for probe in PROBES:
            for place, reference in enumerate(keys):
                for model in keys[place + 1 :]:
                    ours, theirs = (model, task, probe), (reference, task, probe)
                    apart = drawn[ours] - drawn[theirs]
                    low, high = bootstrap.bounds(apart)
                    difference, p_value = values[ours] - values[theirs], significance.p_value(apart)
                    found.append(Difference(task, probe, model, reference, difference, low, high, p_value))
    return found


def _table(task: SplitTask) -> pd.DataFrame:
    inside = task.held_out
    if not inside.any():
        raise OssicleError(f"task {task.name!r} has no test rows")
    table = pd.DataFrame(
        {"row": task.rows[inside], "group": task.groups[inside], "truth": _column(task.truth[inside])}
    )
    return table if task.conditions is None else table.assign(condition=task.conditions[inside])


def _column(values: np.ndarray) -> Any:
    """Return a table's column: of several tags, a list a row."""
    return values if values.ndim == 1 else values.tolist()


def _same_rows(task: SplitTask) -> str:
    # Held-out and group follow from the row.
    validation = None if task.validation is None else task.validation.tolist()
    return config.digest({"unit": task.unit, "rows": task.rows.tolist(), "validation": validation})
