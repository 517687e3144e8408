"""The Teacher_LR control: a logistic regression on the teacher's own embeddings, the store's labels its task.

What the teacher's embedding tells of the labels without any student: the figure that a student trained on the same
labels is held against (Ding and Lerch, "Audio embeddings as teachers for music classification", ISMIR 2023).
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.errors import TrainingError
from pipeline.store.reader import StoreReader
from pipeline.training import targets
from pipeline.training.controls import label_table
from pipeline.training.rows import pieces, usable

log = logging.getLogger(__name__)

FILE = "teacher_lr.json"
# A regression on more rows takes hours and no longer gets better; the store's rows are shuffled.
FIT_ROWS = 100_000
ITERATIONS = 1_000


def teacher_logistic_regression(
    recipe: Recipe, reader: StoreReader, training: np.ndarray, folder: Path
) -> dict[str, Any]:
    """Fit on the targets of the labelled training rows, score on the validation rows, and return the figures.

    ``validation_accuracy`` is the share of rows told right (of rows with several labels: whose likeliest class is
    one of theirs), ``validation_mean_average_precision`` the mean over the classes that validation rows have.

    Args:
        recipe: targets and the labels' column.
        reader: the store, with its teacher chosen.
        training: mask ``(store rows,)`` of the rows that may be learnt from.
        folder: gets ``targets.safetensors``, ``classes.json`` and ``teacher_lr.json``, the average precision a class.

    Raises:
        ConfigError: no such column.
        TrainingError: fewer than two classes to learn, or no labelled validation row.
    """
    table = label_table(reader, recipe.train)
    held_out = usable(reader, "validation") & table.labelled
    learnt = np.flatnonzero(training & table.labelled)[:FIT_ROWS]
    fitted = np.zeros_like(training)
    fitted[learnt] = True
    if not held_out.any():
        raise TrainingError(
            "the teacher_lr control is scored on labelled validation rows, and there are none",
            expected="rows of split validation with a label", got=0,
            run="--set manifest.validation_share=0.1, or --set train.label_column=COLUMN",
        )  # fmt: skip
    if int(training[table.labelled].sum()) > FIT_ROWS:
        log.info("teacher_lr: fitted on the first %d labelled rows", FIT_ROWS)
    transform, fidelity = targets.fit_and_save(
        pieces(reader, training, "embedding"), torch.zeros(0, 0), recipe.targets,
        folder / "targets.safetensors", reader.widths,
    )  # fmt: skip

    def rows(mask: np.ndarray) -> np.ndarray:
        found = [torch.from_numpy(piece.astype(np.float32)) for piece in pieces(reader, mask, "embedding")]
        made: np.ndarray = transform(torch.cat(found)).double().numpy()
        return made

    regression = LogisticRegression(max_iter=ITERATIONS)
    classifier = make_pipeline(
        StandardScaler(), OneVsRestClassifier(regression) if table.has_several else regression
    )
    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier.fit(rows(fitted), table.codes[fitted])
        scores = classifier.predict_proba(rows(held_out))
    converged = not any(issubclass(one.category, ConvergenceWarning) for one in caught)
    if not converged:
        log.warning("teacher_lr: the regression has not converged after %d iterations", ITERATIONS)
    hot = _one_hot(table.codes[held_out], len(table.classes))
    guess = scores.argmax(axis=1)
    precision = {
        name: float(average_precision_score(hot[:, place], scores[:, place]))
        for place, name in enumerate(table.classes)
        if hot[:, place].any()
    }
    if table.has_several:
        accuracy = float(hot[np.arange(len(hot)), guess].mean())
    else:
        accuracy = float(accuracy_score(table.codes[held_out], guess))
    artifact.write_json(folder / "classes.json", table.classes)
    artifact.write_json(folder / FILE, {"average_precision": precision})
    return {
        "validation_accuracy": accuracy,
        "validation_mean_average_precision": float(np.mean(list(precision.values()))),
        "classes": len(table.classes), "labelled_rows": len(learnt), "validation_rows": int(held_out.sum()),
        "converged": converged, "targets": fidelity, "steps": 0,
    }  # fmt: skip


def _one_hot(codes: np.ndarray, classes: int) -> np.ndarray:
    return codes.astype(bool) if codes.ndim == 2 else codes[:, None] == np.arange(classes)
