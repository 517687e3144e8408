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
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.errors import TrainingError
from pipeline.store.reader import StoreReader
from pipeline.training import targets
from pipeline.training.class_scores import scored_clips, write_scores
from pipeline.training.controls import label_table
from pipeline.training.rows import pieces

log = logging.getLogger(__name__)

# A regression on more rows takes hours and no longer gets better; the store's rows are shuffled.
FIT_ROWS = 100_000
ITERATIONS = 1_000


def teacher_logistic_regression(
    recipe: Recipe, reader: StoreReader, training: np.ndarray, folder: Path, title: str
) -> dict[str, Any]:
    """Fit on the targets of the labelled training rows, answer for the held-out clips, and return the figures.

    Scores are those of every run with a classifier (``class_scores.write_scores``): a clip's logits are the mean
    over its windows.

    Args:
        recipe: targets and the labels' column.
        reader: the store, with its teacher chosen.
        training: mask ``(store rows,)`` of the rows that may be learnt from.
        folder: gets ``targets.safetensors``, ``classes.json`` and the scores' files.
        title: of the confusion matrix.

    Raises:
        ConfigError: no such column.
        TrainingError: fewer than two classes to learn, or no labelled clip held out.
    """
    table = label_table(reader, recipe.train)
    labelled = training & table.labelled
    learnt = np.zeros_like(training)
    learnt[np.flatnonzero(labelled)[:FIT_ROWS]] = True
    if labelled.sum() > FIT_ROWS:
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

    def answers(mask: np.ndarray) -> np.ndarray:
        given = rows(mask)
        # Of two classes the decision is one number; the log-probabilities are one a class.
        made: np.ndarray = (
            classifier.decision_function(given) if table.has_several else classifier.predict_log_proba(given)
        )
        return made.reshape(len(given), -1)

    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier.fit(rows(learnt), table.codes[learnt])
        scored = scored_clips(reader, recipe.train, table.classes, answers, None)
    converged = not any(issubclass(one.category, ConvergenceWarning) for one in caught)
    if not converged:
        log.warning("teacher_lr: the regression has not converged after %d iterations", ITERATIONS)
    if scored is None:
        raise TrainingError(
            "the teacher_lr control is scored on held-out clips with a label, and there are none",
            expected="rows of split validation with a label", got=0,
            run="--set manifest.validation_share=0.1, or --set train.label_column=COLUMN",
        )  # fmt: skip
    artifact.write_json(folder / "classes.json", table.classes)
    return {
        **write_scores(folder, scored, table.classes, title), "labelled_rows": int(learnt.sum()),
        "converged": converged, "targets": fidelity, "steps": 0,
    }  # fmt: skip
