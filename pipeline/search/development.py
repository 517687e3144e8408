"""A probe on the store's own labelled rows: development folds only, and no audio is opened.

Rows that a final evaluation tests on are left out: split ``test``, the folds named by ``selection.test_folds``,
and datasets whose labels one of the recipe's tasks scores.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from pipeline import recipe as recipes
from pipeline.config import Recipe, SelectionConfig, canonical_json
from pipeline.errors import ConfigError
from pipeline.evaluation.probes import ProbeSettings, probe_model
from pipeline.evaluation.suite import suite_names
from pipeline.evaluation.task import read_task
from pipeline.store.combination import Combination
from pipeline.store.location import Place
from pipeline.store.reader import StoreReader
from pipeline.store.schema import OK
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import SavedStudent, load_student, read_description
from pipeline.training.job import Job
from pipeline.training.rows import first_rows
from pipeline.training.validation import embed_rows

ALWAYS_TRAINED = -1


@dataclass(frozen=True)
class ProbeScore:
    """Balanced accuracy, 0 to 1, mean over the development folds: of the student, of its floor and its teacher."""

    score: float
    floor: float
    teacher: float

    @property
    def gap_recovered(self) -> float:
        """(student - floor) / (teacher - floor)."""
        return (self.score - self.floor) / (self.teacher - self.floor)


class DevelopmentProbe:
    """Scores finished runs on development folds; the store's rows and the floors are read once.

    Args:
        selection: which labels, which probe.
        base: the recipe; its tasks say which labels are tested on in the end.
        store: the store.
        inputs: of a job: the digests of its arrays.

    Raises:
        ConfigError: there are no labels left to develop on, or nobody said which folds are for testing.
    """

    def __init__(
        self, selection: SelectionConfig, base: Recipe, store: Place, inputs: Mapping[str, str]
    ) -> None:
        self._selection, self._base, self._store = selection, base, store
        self._lock = threading.Lock()
        self._floors: dict[str, float] = {}
        reader = self._reader(base, inputs)
        self._mask = chosen_rows(reader.rows, selection, base)
        rows = reader.rows[self._mask]
        self._labels = rows[selection.label_column].to_numpy(dtype=str)
        self._folds = folds_of(rows)
        self._needs_gap = selection.metric == "gap_recovered"
        self._teacher = self._probe(first_rows(reader, self._mask, len(rows))[2].numpy())

    def score(self, job: Job) -> ProbeScore:
        """Return the scores of a finished run's student, of untrained ones like it and of the teacher."""
        saved = read_description(job.folder)
        reader = self._reader(job.run.recipe, job.inputs)
        spectrogram = first_rows(reader, self._mask, len(self._labels))[1]
        torch.set_num_threads(job.run.recipe.train.threads)
        score = self._probe(_embed(load_student(job.folder), spectrogram))
        if not self._needs_gap:
            return ProbeScore(score, float("nan"), self._teacher)
        floor = self._floor(saved, spectrogram)
        if floor >= self._teacher:
            raise ConfigError(
                "no gap to recover: an untrained student scores as well as the teacher on these labels",
                expected="a teacher above its floor", got=f"teacher {self._teacher:.3f}, untrained {floor:.3f}",
                run="--set selection.metric=probe_score, or another selection.label_column",
            )  # fmt: skip
        return ProbeScore(score, floor, self._teacher)

    def _floor(self, saved: SavedStudent, spectrogram: torch.Tensor) -> float:
        key = canonical_json({
            "student": saved.student, "frontend": saved.frontend.model_dump(mode="json"), "mean": saved.mean,
        })  # fmt: skip
        with self._lock:
            if key not in self._floors:
                config = saved.student.model_copy(update={"weights": None, "trust_sha256": None})
                scores = []
                for seed in range(self._selection.random_floors):
                    with torch.random.fork_rng(devices=[]):
                        torch.manual_seed(seed)
                        student = NormalisedStudent(build_student(config, saved.mels), saved.mean, saved.std)
                    scores.append(self._probe(_embed(student, spectrogram)))
                self._floors[key] = float(np.mean(scores))
            return self._floors[key]

    def _reader(self, recipe: Recipe, inputs: Mapping[str, str]) -> StoreReader:
        teacher: str | Combination = inputs["teacher"]
        if recipe.targets.teachers:
            teacher = Combination.of(recipe.targets, dict(inputs))
        return StoreReader(self._store, frontend=inputs["frontend"], teacher=teacher)

    def _probe(self, embedding: Float[np.ndarray, "rows dim"]) -> float:
        return fold_score(embedding, self._labels, self._folds, self._selection.probe, self._base)


def chosen_rows(rows: pd.DataFrame, selection: SelectionConfig, base: Recipe) -> np.ndarray:
    """Return a mask ``(rows,)`` of the labelled rows that may be developed on, ``probe_rows`` at most.

    Raises:
        ConfigError: no such column, no label, or folds of which nobody said which are for testing.
    """
    column = selection.label_column
    if column not in rows.columns:
        raise ConfigError(
            f"the store's clips have no column {column!r}", expected=", ".join(map(str, rows.columns)), got=column,
            run="--set selection.label_column=...",
        )  # fmt: skip
    mask = (rows["status"] == OK) & (rows[column].fillna("").astype(str) != "") & (rows["split"] != "test")
    tested = _tested_datasets(base.evaluate.tasks, column)
    if tested:
        every = "" in tested
        mask &= ~(rows["dataset"].isin(tested) | every)
    has_folds = "fold" in rows.columns and bool((rows.loc[mask, "fold"] >= 0).any())
    if has_folds:
        if selection.test_folds is None:
            known = sorted(int(fold) for fold in rows.loc[mask, "fold"].unique())
            raise ConfigError(
                "the labelled rows have folds; say which are kept for the final evaluation",
                expected=f"some of {known}, or [] for none", run="--set selection.test_folds=[...]",
            )  # fmt: skip
        mask &= ~rows["fold"].isin(selection.test_folds)
    chosen = np.flatnonzero(mask.to_numpy(dtype=bool))
    if not len(chosen):
        raise ConfigError(
            f"no row of the store has a {column} to develop on",
            expected="labels outside of the test split, the test folds and the tasks' own datasets",
            got=f"{', '.join(sorted(tested)) or 'no dataset'} kept for the recipe's tasks",
            run="--set selection.label_column=..., or selection.metric=neighbour_overlap",
        )  # fmt: skip
    held_out = rows["split"].to_numpy()[chosen] == "validation"
    # Rows are shuffled; the held-out ones, which are few, are all kept.
    kept = np.concatenate([chosen[held_out], chosen[~held_out]])[: selection.probe_rows]
    found = np.zeros(len(rows), dtype=bool)
    found[kept] = True
    return found


def folds_of(rows: pd.DataFrame) -> np.ndarray:
    """Return the fold ``(rows,)`` of each: its own; or validation rows 0 and training rows always trained on.

    Raises:
        ConfigError: nothing would be held out, or nothing trained on.
    """
    folds: np.ndarray
    if "fold" in rows.columns and bool((rows["fold"] >= 0).any()):
        folds = rows["fold"].to_numpy(dtype=np.int64, copy=True)
    else:
        folds = np.where(rows["split"] == "validation", 0, ALWAYS_TRAINED)
    held_out = set(folds.tolist()) - {ALWAYS_TRAINED}
    if not held_out or (len(held_out) == 1 and ALWAYS_TRAINED not in folds):
        raise ConfigError(
            "the labelled rows cannot be divided into development folds",
            expected="two folds besides the test folds, or rows of both splits, train and validation",
            got=f"{len(rows)} rows in {len(set(folds.tolist()))} part(s)",
        )  # fmt: skip
    return folds


def fold_score(
    embedding: Float[np.ndarray, "rows dim"], labels: np.ndarray, folds: np.ndarray, probe: str, base: Recipe
) -> float:
    """Return the balanced accuracy, mean over the folds: each by a probe fitted on every other row.

    Only classes that the fitted rows hold are asked for.
    """
    settings, scores = ProbeSettings(base.evaluate.neighbours, base.evaluate.logistic_c), []
    features = embedding.astype(np.float64)
    with threadpool_limits(limits=1, user_api="blas"):
        for fold in sorted(set(folds.tolist()) - {ALWAYS_TRAINED}):
            train = folds != fold
            held_out = ~train & np.isin(labels, np.unique(labels[train]))
            if not held_out.any():
                continue
            model = probe_model(probe, settings)
            model.fit(features[train], labels[train])
            correct = model.predict(features[held_out]) == labels[held_out]
            classes = np.unique(labels[held_out])
            scores.append(np.mean([correct[labels[held_out] == name].mean() for name in classes]))
    if not scores:
        raise ConfigError("no held-out row has a label that the fitted rows know", got=f"{len(labels)} rows")
    return float(np.mean(scores))


def _embed(student: NormalisedStudent, spectrogram: torch.Tensor) -> Float[np.ndarray, "rows dim"]:
    found: Float[np.ndarray, "rows dim"]
    found = embed_rows(student.eval(), spectrogram, 256, torch.device("cpu"), None).numpy()
    return found


def _tested_datasets(tasks: Sequence[str], column: str) -> set[str]:
    """Return the datasets whose ``column`` one of the tasks scores; ``""`` among them stands for all."""
    # Suites have tracks of their own, none of the store's.
    suites = suite_names(recipes.DATA_MANIFESTS / "suites")
    found = (read_task(name, recipes.DATA_MANIFESTS / "tasks").audio for name in tasks if name not in suites)
    return {audio.dataset for audio in found if audio.source == "manifest" and audio.label_column == column}
