"""The part of a run's objective over classes, built from a recipe and a store."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.errors import ConfigError, TrainingError
from pipeline.loss_config import CLASS_TERMS
from pipeline.store.reader import StoreReader
from pipeline.store.schema import OK, ArraySpec
from pipeline.students.classifier import CLASSES_FILE
from pipeline.training.class_objective import ClassObjective, ClassSources, require_mixable
from pipeline.training.controls import LabelTable, label_table
from pipeline.training.logits_table import LogitsTable, teacher_classes

log = logging.getLogger(__name__)


def class_objective(
    recipe: Recipe,
    reader: StoreReader,
    training: Bool[np.ndarray, " rows"],
    embedding_dim: int,
    logits: str | None,
    folder: Path,
) -> tuple[ClassObjective, dict[str, Any]]:
    """Return the losses over classes that ``recipe`` asks for, and what they say for the run's marker.

    Args:
        recipe: the loss and the labels' column.
        reader: the store.
        training: the rows that may be learnt from.
        embedding_dim: width of the student's embedding.
        logits: digest of the logits array, where a term looks at logits.
        folder: gets ``classes.json`` where the classes have names.

    Raises:
        ConfigError: labels and logits do not fit each other, or the logits do not fit in memory.
        TrainingError: no training row has logits, or a label.
    """
    loss = recipe.loss
    table: LogitsTable | None = None
    names: list[str] | None = None
    labels: LabelTable | None = None
    summary: dict[str, Any] = {}
    rows = int(training.sum())
    if loss.needs_logits:
        spec = _logits_spec(reader, logits)
        names = teacher_classes(spec, loss.classes)
        table = LogitsTable(reader, spec, (reader.rows["status"] == OK).to_numpy(dtype=bool))
        known = int((table.known & training).sum())
        if not known:
            raise TrainingError(
                f"no training row has logits of {spec.name}", expected="rows for loss.hinton and loss.tags",
                got=f"0 of {rows} rows", run=f"ossicle store inspect {recipe.name}",
            )  # fmt: skip
        summary |= {"logits": spec.digest, "logits_rows": known, "logits_classes": table.classes}
        log.info("logits of %s: %d of %d training rows, %d classes", spec.name, known, rows, table.classes)
    if loss.needs_labels:
        labels = label_table(reader, recipe.train)
        labelled = int((labels.labelled & training).sum())
        summary |= {"labelled_rows": labelled, "classes": len(labels.classes)}
        log.info("labels: %d of %d training rows, %d classes", labelled, rows, len(labels.classes))
    objective = ClassObjective(
        embedding_dim, loss, ClassSources(table, names, labels), recipe.train.label_smoothing
    )
    if objective.classes is not None:
        artifact.write_json(folder / CLASSES_FILE, objective.classes)
    return objective, summary | {"label_head": objective.label_head}


def check(recipe: Recipe, reader: StoreReader, logits: str | None) -> None:
    """Refuse what ``class_objective`` would refuse, as far as that shows without reading any array.

    Raises:
        ConfigError: no such label column, or labels and logits that do not fit each other.
        TrainingError: no labels.
    """
    loss = recipe.loss
    if recipe.train.control != "none" or not loss.uses(*CLASS_TERMS):
        return
    names = teacher_classes(_logits_spec(reader, logits), loss.classes) if loss.needs_logits else None
    if loss.needs_labels:
        require_mixable(loss, label_table(reader, recipe.train), names, has_logits=loss.needs_logits)


def _logits_spec(reader: StoreReader, digest: str | None) -> ArraySpec:
    found = [spec for spec in reader.meta.arrays if spec.kind == "logits" and spec.digest == digest]
    if not found:
        raise ConfigError(
            "the run was given no logits of the store", expected="the digest of a logits array", got=digest,
            run="ossicle distill RECIPE",
        )  # fmt: skip
    return found[0]
