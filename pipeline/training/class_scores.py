"""How well a run's classifier answers for the clips that it was not trained on, from the store alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from pipeline import artifact
from pipeline.config import TrainConfig
from pipeline.training.class_objective import ClassObjective, MixedObjective
from pipeline.training.confusion import confusion_matrix, write_confusion
from pipeline.training.controls import DEFAULT_LABEL_COLUMN, SEPARATOR, LabelObjective, column_text
from pipeline.training.rows import ShardReader, pieces, usable
from pipeline.training.validation import embed_rows

log = logging.getLogger(__name__)

HELD_OUT_FILE = "held_out.npz"
CLEAN = "clean"
LogitsOf = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ClassHead:
    """A trained classifier over the student's embedding.

    Attributes:
        layer: embedding to logits.
        classes: names in the order of the logits.
        teacher: the objective that holds the teacher's logits of the same classes, None where there are none.
    """

    layer: nn.Module
    classes: list[str]
    teacher: ClassObjective | None


def class_head(objective: object) -> ClassHead | None:
    """Return the classifier of an objective, None where it has none or nobody knows the names of its classes."""
    if isinstance(objective, LabelObjective):
        return ClassHead(objective.head, objective.classes, None)
    if isinstance(objective, MixedObjective):
        objective = objective.classes
    if not isinstance(objective, ClassObjective) or objective.classes is None:
        return None
    shared = objective.label_head == "teacher"
    return ClassHead(objective.head[objective.label_head], objective.classes, objective if shared else None)


@dataclass(frozen=True)
class Scored:
    """Held-out clips: a clip's logits are the mean over its windows.

    Attributes:
        clip_ids: of each clip.
        truth: class code (clips,), or 0 and 1 of every class (clips, classes) where a clip has several labels.
        logits: the student's.
        teacher: the teacher's logits of the same classes, NaN where the store has none; None without such a teacher.
    """

    clip_ids: np.ndarray
    truth: Int64[np.ndarray, "clips ..."]
    logits: Float[np.ndarray, "clips classes"]
    teacher: Float[np.ndarray, "clips classes"] | None


def score(
    student: nn.Module,
    objective: object,
    reader: ShardReader,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype | None,
) -> tuple[Scored, list[str]] | None:
    """Return the held-out clips that have a label of a class of the run's classifier, and those classes.

    Augmented views and mixes are left out. None where the run has no classifier, or no held-out clip has a label.

    Args:
        student: log-mel (batch, 1, mels, frames) to embedding.
        objective: what it was trained on; its classifier answers.
        reader: the store.
        config: the labels' column, and whether a row may have several.
        device: where student and objective are.
        dtype: number format of the student.
    """
    head = class_head(objective)
    if head is None:
        return None
    layer, theirs = head.layer, None if head.teacher is None else head.teacher.logits

    def of_student(mask: Bool[np.ndarray, " rows"]) -> Float[np.ndarray, "chosen classes"]:
        return _logits(student, layer, reader, mask, config.batch_size, device, dtype)

    def of_teacher(mask: Bool[np.ndarray, " rows"]) -> Float[np.ndarray, "chosen classes"]:
        assert theirs is not None
        found: np.ndarray = theirs(torch.from_numpy(np.flatnonzero(mask))).numpy()
        return found

    scored = scored_clips(reader, config, head.classes, of_student, None if theirs is None else of_teacher)
    return None if scored is None else (scored, head.classes)


def scored_clips(
    reader: ShardReader,
    config: TrainConfig,
    classes: list[str],
    logits_of: LogitsOf,
    teacher_of: LogitsOf | None,
) -> Scored | None:
    """Return the held-out clips that have a label of ``classes``, answered; None where no clip has.

    Augmented views and mixes are left out.

    Args:
        reader: the store.
        config: the labels' column, and whether a row may have several.
        classes: names in the order of the logits.
        logits_of: mask of store rows to their logits; teacher_of: to the teacher's, where it has the same classes.
    """
    rows, column = reader.rows, config.label_column or DEFAULT_LABEL_COLUMN
    if column not in rows.columns:
        return None
    several = config.label_kind == "bce"
    hot = _hot(column_text(reader, column, "train.label_column"), classes, several=several)
    mask = usable(reader, "validation") & hot.any(axis=1)
    if "view" in rows.columns:
        mask &= (rows["view"] == CLEAN).to_numpy(dtype=bool)
    if not mask.any():
        log.warning("no held-out clip has a label of column %r: nothing for the classifier to answer", column)
        return None
    index = np.flatnonzero(mask)
    names = rows["clip_id" if "clip_id" in rows.columns else "key"].to_numpy(dtype=str)[index]
    clip_ids, first, clip = np.unique(names, return_index=True, return_inverse=True)
    truth = hot[index[first]].astype(np.int64)
    return Scored(
        clip_ids, truth if several else truth.argmax(axis=1), _means(logits_of(mask), clip),
        None if teacher_of is None else _means(teacher_of(mask), clip),
    )  # fmt: skip


def write_scores(folder: Path, scored: Scored, classes: list[str], title: str) -> dict[str, Any]:
    """Write ``held_out.npz`` and, of clips with one label each, the confusion matrix; return the figures.

    One label: ``accuracy``, ``balanced_accuracy`` (mean recall of the classes that occur) and ``macro_f1``, and
    where the teacher's logits are there ``teacher_accuracy`` on the same clips and ``teacher_agreement``, the share
    of equal answers. Several: ``mean_average_precision`` over the classes that occur.
    """
    with artifact.replacing(folder / HELD_OUT_FILE) as temporary:
        np.savez(temporary, clip_id=scored.clip_ids, truth=scored.truth, logits=scored.logits)
    figures: dict[str, Any] = {"scored_clips": len(scored.clip_ids), "classes": len(classes)}
    if scored.truth.ndim == 2:
        from sklearn.metrics import average_precision_score

        there = scored.truth.any(axis=0) & ~scored.truth.all(axis=0)
        if there.any():
            figures["mean_average_precision"] = float(
                average_precision_score(scored.truth[:, there], scored.logits[:, there], average="macro")
            )
        return figures
    guess = scored.logits.argmax(axis=1)
    matrix = confusion_matrix(scored.truth, guess, len(classes))
    write_confusion(folder, matrix, classes, title)
    right, truths, guesses = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    there = truths > 0
    figures |= {
        "accuracy": float(right.sum() / truths.sum()),
        "balanced_accuracy": float((right[there] / truths[there]).mean()),
        "macro_f1": float((2 * right[there] / (truths + guesses)[there]).mean()),
    }
    if scored.teacher is not None:
        known = np.isfinite(scored.teacher).all(axis=1)
        if known.any():
            theirs = scored.teacher[known].argmax(axis=1)
            figures["teacher_accuracy"] = float((theirs == scored.truth[known]).mean())
            figures["teacher_agreement"] = float((theirs == guess[known]).mean())
    return figures


def scored_into(
    folder: Path,
    title: str,
    student: nn.Module,
    objective: object,
    reader: ShardReader,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype | None,
) -> dict[str, Any]:
    """Score a trained run and write it into its folder; no figures where there is nothing to score."""
    found = score(student, objective, reader, config, device, dtype)
    return {} if found is None else write_scores(folder, *found, title)


def _hot(texts: list[str], classes: list[str], *, several: bool) -> Bool[np.ndarray, "rows classes"]:
    """Return which classes each row has; a label that is none of them is as if absent."""
    code = {name: place for place, name in enumerate(classes)}
    hot = np.zeros((len(texts), len(classes)), dtype=bool)
    for row, text in enumerate(texts):
        labels = [part.strip() for part in text.split(SEPARATOR)] if several else [text]
        hot[row, [code[label] for label in labels if label in code]] = True
    return hot


@torch.no_grad()
def _logits(
    student: nn.Module,
    head: nn.Module,
    reader: ShardReader,
    mask: Bool[np.ndarray, " rows"],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Float[np.ndarray, "chosen classes"]:
    """Return the classifier's logits of the chosen rows, a shard in memory at a time."""
    training = head.training
    head.eval()
    made: list[Tensor] = []
    for piece in pieces(reader, mask, "spectrogram"):
        spectrogram = torch.from_numpy(piece.astype(np.float16))
        made.append(head(embed_rows(student, spectrogram, batch_size, device, dtype)).float().cpu())
    head.train(training)
    found: np.ndarray = torch.cat(made).numpy()
    return found


def _means(
    values: Float[np.ndarray, "windows classes"], clip: Shaped[np.ndarray, " windows"]
) -> Float[np.ndarray, "clips classes"]:
    """Return the mean of each clip's rows."""
    clips = int(clip.max()) + 1
    sums = np.zeros((clips, values.shape[1]), dtype=np.float64)
    np.add.at(sums, clip, values.astype(np.float64))
    means: np.ndarray = (sums / np.bincount(clip, minlength=clips)[:, None]).astype(np.float32)
    return means
