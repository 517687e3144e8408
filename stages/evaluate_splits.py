"""Tasks with the dataset's own train and test splits in ``ossicle evaluate``: FSD50K, NSynth, TAU and their like."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.evaluation import metrics, probe_answers, split_breakdown
from pipeline.evaluation.clip_vectors import ClipVectors
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.dataset_clips import split_tasks
from pipeline.evaluation.probes import PROBES
from pipeline.evaluation.scoring import Score
from pipeline.evaluation.split_scoring import described, heard_tasks, score_split_tasks
from stages import locations
from stages.evaluate_statistics import Statistics

PREDICTIONS = "predictions"


@dataclass
class SplitResults:
    """What ``scores.json`` says of such tasks.

    Attributes:
        rows: of every metric of every task.
        tasks: their descriptions.
        differences: paired, on the same draws of groups.
        conditions: of each device or other condition apart.
        confusions: of tasks of classes.
    """

    rows: list[Score] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)
    conditions: list[dict[str, Any]] = field(default_factory=list)
    confusions: list[dict[str, Any]] = field(default_factory=list)


def is_split(clips: TaskClips) -> bool:
    """Whether the task is scored on the dataset's own splits, not over folds."""
    return clips.task.folds.kind == "split"


def score(
    recipe: Recipe,
    clips: TaskClips,
    vectors: ClipVectors,
    comparison: Comparison,
    folder: Path,
    statistics: Statistics,
    console: Console,
) -> SplitResults:
    """Score every model on one task; the test rows' predictions go to ``predictions/*.parquet``.

    Calibration and few-shot accuracy are added to ``statistics``; what is left out is said on ``console``.

    Raises:
        ManifestError: a split has nothing to tell apart.
        OssicleError: a probe cannot be fitted.
    """
    tasks = heard_tasks(split_tasks(clips), {"track": vectors.heard})
    embeddings = {key: vectors.embeddings[key] for key in comparison.models}
    mean_of_metrics = f"{clips.task.name} "
    made = score_split_tasks(
        tasks, comparison.models, {"track": embeddings}, recipe.evaluate, mean_of_metrics,
        cache=locations.root(recipe) / probe_answers.FOLDER,
    )  # fmt: skip
    statistics.add_split_task(tasks[0], comparison.models, embeddings, made, recipe.evaluate, console)
    found = SplitResults(
        rows=[row for row in made.rows if row.task != mean_of_metrics],
        differences=[
            {**asdict(one), "decided": one.decided} for one in made.differences if one.task != mean_of_metrics
        ],
        tasks=[
            {**described(task, clips.task.licence), "unusable": [asdict(clip) for clip in vectors.unusable]}
            for task in tasks
        ],
    )
    settings = recipe.evaluate
    for task in tasks:
        table = made.predictions[task.name]
        artifact.write_bytes(folder / PREDICTIONS / f"{task.name}.parquet", table.to_parquet(index=False))
        for key in comparison.models:
            for probe in PROBES:
                answers = np.array(table[f"{key}.{probe}"].tolist())
                place = {"task": task.name, "model": key, "probe": probe}
                found.conditions += [
                    {**place, **row}
                    for row in split_breakdown.by_condition(
                        task, answers, resamples=settings.bootstrap, seed=settings.seed
                    )
                ]
                if task is tasks[0] and (counts := split_breakdown.confusion(task, answers)):
                    found.confusions.append({**place, **counts})
    return found


def without_shares_of_errors(
    summary: list[dict[str, Any]], tasks: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the summary without retention and share where less is better: a share of an error says nothing."""
    without = errors(tasks)
    nothing = dict.fromkeys(("retention", "retention_spread", "share", "share_spread"))
    return [{**row, **nothing} if row["task"] in without else row for row in summary]


def errors(tasks: list[dict[str, Any]]) -> set[str]:
    """Return the names of the tasks where less is better."""
    return {
        task["name"] for task in tasks
        if task["metric"] in metrics.METRICS and not metrics.find(task["metric"]).higher_is_better
    }  # fmt: skip
