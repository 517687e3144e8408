"""What a run learns: its objective, the rows that it has targets for, and what its folder says of both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.loss_config import BEYOND_TERMS, CLASS_TERMS, EMBEDDING_TERMS
from pipeline.store.reader import StoreReader
from pipeline.students.normalised import NormalisedStudent
from pipeline.training.class_objective import MixedObjective
from pipeline.training.class_task import class_objective
from pipeline.training.controls import LabelObjective, label_table
from pipeline.training.distil_task import distil_objective
from pipeline.training.validation import HeldOut


@dataclass(frozen=True)
class Task:
    """An objective and the training rows that it is for.

    Attributes:
        objective: a module with trained heads, ``saved_heads`` by file name.
        rows: mask ``(store rows,)``.
        summary: figures for the run's marker.
    """

    objective: nn.Module
    rows: np.ndarray
    summary: dict[str, Any] = field(default_factory=dict)


def prepare_task(
    recipe: Recipe,
    reader: StoreReader,
    training: np.ndarray,
    student: NormalisedStudent,
    held_out: HeldOut,
    folder: Path,
    logits: str | None = None,
) -> Task:
    """Return what the recipe's run learns, with its statistics fitted on the training rows.

    Args:
        training: mask ``(store rows,)`` of the rows that may be learnt from.
        folder: gets the statistics, or the classes.
        logits: digest of the logits array, where a term of the loss looks at logits.
    """
    config = recipe.train
    if config.control == "labels":
        table = label_table(reader, config)
        rows = training & table.labelled
        artifact.write_json(folder / "classes.json", table.classes)
        objective = LabelObjective(student.embedding_dim, table, config.label_smoothing)
        return Task(objective, rows, {"classes": len(table.classes), "labelled_rows": int(rows.sum())})
    classes, summary = None, dict[str, Any]()
    # First what may stop the run before any work: statistics take a pass over the store.
    if recipe.loss.uses(*CLASS_TERMS):
        classes, summary = class_objective(recipe, reader, training, student.embedding_dim, logits, folder)
        if not recipe.loss.uses(*EMBEDDING_TERMS, *BEYOND_TERMS) and recipe.targets.compression == "none":
            return Task(classes, training & classes.known, summary)
    distil, more = distil_objective(recipe, reader, training, student.embedding_dim, held_out, folder)
    whole = distil if classes is None else MixedObjective(distil, classes)
    return Task(whole, training, {**summary, **more})
