"""What ``ossicle evaluate`` says beside the scores: geometry, classes, calibration, few-shot, retention, chance.

Keys of ``scores.json`` (lists of rows, each with ``task`` and ``model``; docs/evaluation.md says what they mean)::

    geometry     effective_rank, hubness, against: [teacher, neighbour_overlap {k: share}, linear_cka, debiased_cka,
                 distance_correlation]
    classes      probe, rows: [label, clips, recall, precision, f1, neighbour_agreement]
    confusions   probe, classes, counts: rows the truth, columns the answer
    conditions   probe, condition, rows, score, low, high, seen: of tasks whose clips have a condition
    calibration  probe, expected_calibration_error, brier, confidence, accuracy, clips (a value a bin)
    few_shot     classifier, accuracy, low, high, episodes_half_width, episodes, shots, classes
    retention    probe, teacher, retention, low, high
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from pipeline.config import EvaluateConfig
from pipeline.errors import ConfigError
from pipeline.evaluation import calibration, class_tables, geometry, significance, structure
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.probes import PROBES
from pipeline.evaluation.scoring import (
    LOG_MEL,
    RANDOM,
    REFERENCE,
    TEACHER,
    Answers,
    Model,
    Score,
    differences,
    draws,
)
from pipeline.evaluation.split_scoring import SplitScores
from pipeline.evaluation.split_task import SplitTask
from pipeline.prototypes import episodes
from pipeline.prototypes.episodes import Classifier

HUB_NEIGHBOURS = 10
# Holm's smallest level is 0.05 / pairs; a bootstrap of B draws has no p-value below 2 / (1 + B).
DRAWS_A_PAIR = 100
# Of a test split at most so many rows are in few-shot episodes: more would narrow no interval over recordings.
FEW_SHOT_ROWS = 2_000


@dataclass
class Statistics:
    """Rows for ``scores.json``, added to task by task; the module says of what."""

    geometry: list[dict[str, Any]] = field(default_factory=list)
    classes: list[dict[str, Any]] = field(default_factory=list)
    confusions: list[dict[str, Any]] = field(default_factory=list)
    conditions: list[dict[str, Any]] = field(default_factory=list)
    calibration: list[dict[str, Any]] = field(default_factory=list)
    few_shot: list[dict[str, Any]] = field(default_factory=list)
    retention: list[dict[str, Any]] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the keys of ``scores.json``; the differences corrected for how many there are of a task and probe."""
        return asdict(self)

    def add_geometry(
        self,
        task: str,
        models: Mapping[str, Model],
        embeddings: Mapping[str, np.ndarray],
        settings: EvaluateConfig,
    ) -> None:
        """Add how every space looks, and how like every teacher's it is; ``embeddings`` of clips that all heard."""
        clips = len(next(iter(embeddings.values())))
        at = [k for k in settings.overlap_at if k < clips]
        most = min(max([HUB_NEIGHBOURS, *at]), clips - 1)
        near = {key: geometry.nearest(embeddings[key], most) for key in models}
        teachers = teacher_keys(models)
        for key in models:
            against = []
            for teacher in (one for one in teachers if one != key):
                shared = geometry.overlap_at(near[key], near[teacher], at) if at else {}
                against.append(
                    {
                        "teacher": teacher,
                        "neighbour_overlap": {str(k): value for k, value in shared.items()},
                        "linear_cka": structure.linear_cka(embeddings[key], embeddings[teacher]),
                        "debiased_cka": geometry.debiased_cka(embeddings[key], embeddings[teacher]),
                        "distance_correlation": geometry.distance_correlation(
                            embeddings[key], embeddings[teacher], seed=settings.seed
                        ),
                    }
                )
            hubs = geometry.hubness(near[key][:, : min(HUB_NEIGHBOURS, most)])
            rank = structure.effective_rank(embeddings[key])
            self.geometry.append(
                {
                    "task": task, "model": key, "effective_rank": rank, "hubness": hubs.as_json(), "against": against,
                }
            )  # fmt: skip

    def add_answers(
        self,
        clips: TaskClips,
        models: Mapping[str, Model],
        embeddings: Mapping[str, np.ndarray],
        answers: Answers,
        settings: EvaluateConfig,
    ) -> None:
        """Add what the probes' out-of-fold answers say, random initialisations left out.

        Args:
            clips: the task.
            models: by key.
            embeddings: of all the task's clips.
            answers: of the probes on the clips that all models heard.
            settings: bins, resamples and seed.
        """
        task = clips.task.name
        frame = clips.frame[answers.heard]
        shown = [key for key, model in models.items() if model.role != RANDOM]
        neighbours = min(settings.neighbours, len(answers.labels) - 1)
        for key in shown:
            near = geometry.nearest(embeddings[key][answers.heard], neighbours)
            agreement = geometry.label_agreement(near, answers.labels)
            for probe in PROBES:
                found = answers.outcomes[key, probe]
                row = {"task": task, "model": key, "probe": probe}
                counts = class_tables.confusion(answers.labels, found.predicted, found.classes)
                table = class_tables.per_class(counts, found.classes, agreement)
                self.classes.append({**row, "rows": table})
                self.confusions.append(
                    {**row, "classes": [str(one) for one in found.classes], "counts": counts.tolist()}
                )
                truth = np.searchsorted(found.classes, answers.labels)
                measured = calibration.calibration(found.probabilities, truth, settings.calibration_bins)
                self.calibration.append({**row, **measured.as_json()})
                if "condition" in frame.columns and frame["condition"].nunique() > 1:
                    table = _of_conditions(answers, key, probe, frame, settings)
                    self.conditions += [{**row, **of_one} for of_one in table]
        self._add_differences(models, answers, settings)

    def add_split_task(
        self,
        task: SplitTask,
        models: Mapping[str, Model],
        embeddings: Mapping[str, np.ndarray],
        scores: SplitScores,
        settings: EvaluateConfig,
        console: Console,
    ) -> None:
        """Add calibration and few-shot accuracy of a task of classes with splits, both of its test rows alone.

        Args:
            task: nothing is added of one of values or tags.
            models: by key.
            embeddings: of all of the task's unit, by key.
            scores: with the probes' answers; random initialisations are left out of the calibration.
            settings: bins, shots, episodes and seed.
            console: for what is left out.
        """
        if not task.classes:
            return
        inside = task.held_out
        truth = np.searchsorted(task.classes, task.truth[inside])
        for key in (key for key, model in models.items() if model.role != RANDOM):
            for probe in PROBES:
                answer = scores.answers[key, task.name, probe]
                if answer.probabilities is None or answer.classes is None:
                    continue
                shares = np.zeros((len(truth), len(task.classes)))
                shares[:, np.searchsorted(task.classes, answer.classes)] = answer.probabilities
                measured = calibration.calibration(shares, truth, settings.calibration_bins)
                self.calibration.append(
                    {"task": task.name, "model": key, "probe": probe, **measured.as_json()}
                )
        rows = np.flatnonzero(inside)
        if len(rows) > FEW_SHOT_ROWS:
            drawn = np.random.default_rng(settings.seed).permutation(len(rows))[:FEW_SHOT_ROWS]
            rows = rows[np.sort(drawn)]
        given = {key: embeddings[key][task.rows[rows]] for key in models}
        self.add_few_shot(task.name, task.truth[rows], task.groups[rows], models, given, settings, console)

    def add_few_shot(
        self,
        task: str,
        labels: np.ndarray,
        groups: np.ndarray,
        models: Mapping[str, Model],
        embeddings: Mapping[str, np.ndarray],
        settings: EvaluateConfig,
        console: Console,
    ) -> None:
        """Add few-shot accuracy with prototypes and with neighbours, of the same episodes for every model.

        A task whose recordings do not suffice for it is said to be left out. ``labels``, ``groups`` and every
        embedding are of the clips that all models heard.
        """
        if not settings.shots:
            return
        try:
            kept = episodes.usable_classes(labels, groups, settings.shots)
            of_class = np.array([kept.index(label) if label in kept else -1 for label in labels])
            drawn = list(
                episodes.draw_episodes(
                    of_class, groups, shots=settings.shots, episodes=settings.episodes, seed=settings.seed
                )
            )
        except ConfigError as error:
            console.print(f"evaluate: {task}: no few-shot episodes: {error.problem}")
            return
        classifiers = {
            "prototypes": Classifier(),
            "neighbours": Classifier(neighbours=min(settings.neighbours, settings.shots)),
        }
        for key in models:
            for name, classifier in classifiers.items():
                found = episodes.score_episodes(
                    embeddings[key], of_class, groups, drawn, classifier, seed=settings.seed
                )
                self.few_shot.append({"task": task, "model": key, "classifier": name, **found.as_json()})

    def add_retention(
        self,
        models: Mapping[str, Model],
        rows: Sequence[Score],
        answers: Mapping[str, Answers],
        settings: EvaluateConfig,
        errors: Collection[str] = (),
    ) -> None:
        """Add each model's score as a share of every teacher's; with a paired interval where there are answers.

        Args:
            models: by key.
            rows: the scores of all tasks.
            answers: task to the probes' answers.
            settings: resamples and seed.
            errors: tasks where less is better: a share of an error says nothing.
        """
        values = {(row.task, row.probe, row.model): row.score for row in rows if row.task not in errors}
        teachers = teacher_keys(models)
        drawn = {task: draws(found, settings) for task, found in answers.items()} if teachers else {}
        for (task, probe, key), value in values.items():
            for teacher in (one for one in teachers if one != key):
                theirs = values.get((task, probe, teacher))
                # A correlation or R2 may be 0 or less, and a share of that says nothing.
                if theirs is None or theirs <= 0:
                    continue
                low = high = float("nan")
                if of_task := drawn.get(task):
                    low, high = significance.ratio_interval(of_task[key, probe], of_task[teacher, probe])
                self.retention.append(
                    {
                        "task": task, "model": key, "probe": probe, "teacher": teacher, "retention": value / theirs,
                        "low": low, "high": high,
                    }
                )  # fmt: skip

    def correct_differences(self, models: Mapping[str, Model], others: Sequence[dict[str, Any]]) -> None:
        """Add further differences, and to each its p-value after Holm's correction.

        A family is the pairs of one task and probe between networks that learnt something: random initialisations
        and log-mels have none (None), so that more floors do not hide a difference between students.
        """
        self.differences = [*others, *self.differences]
        families: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self.differences:
            row["p_holm"] = None
            if all(models[row[key]].role not in (RANDOM, LOG_MEL) for key in ("model", "reference")):
                families.setdefault((row["task"], row["probe"]), []).append(row)
        for family in families.values():
            known = [row["p_value"] if row["p_value"] is not None else float("nan") for row in family]
            for row, value in zip(family, significance.holm(known), strict=True):
                row["p_holm"] = value

    def _add_differences(
        self, models: Mapping[str, Model], answers: Answers, settings: EvaluateConfig
    ) -> None:
        keys = [key for key, model in models.items() if model.role not in (RANDOM, LOG_MEL)]
        keys.sort(key=lambda key: models[key].role not in (TEACHER, REFERENCE))
        pairs = len(keys) * (len(keys) - 1) // 2
        correct = {(key, probe): answers.correct[key, probe] for key in keys for probe in PROBES}
        resamples = max(settings.bootstrap, DRAWS_A_PAIR * pairs) if settings.bootstrap else 0
        finer = settings.model_copy(update={"bootstrap": resamples})
        self.differences += [
            {**asdict(one), "decided": one.decided}
            for one in differences(replace(answers, correct=correct), finer)
        ]


def teacher_keys(models: Mapping[str, Model]) -> list[str]:
    """Return the keys of the recipe's teacher and of the further ones."""
    return [key for key, model in models.items() if model.role in (TEACHER, REFERENCE)]


def _of_conditions(
    answers: Answers, key: str, probe: str, frame: pd.DataFrame, settings: EvaluateConfig
) -> list[dict[str, Any]]:
    return class_tables.per_condition(
        answers.correct[key, probe], answers.labels, answers.groups, answers.folds,
        frame["condition"].to_numpy(dtype=str),
        metric=answers.metric, resamples=settings.bootstrap, seed=settings.seed,
    )  # fmt: skip
