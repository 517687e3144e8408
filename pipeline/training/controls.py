"""The two controls that say what distillation is worth.

``random``: the student as it was initialised, no step made; its score is the floor. ``labels``: the same
student, trained on the store's label column alone, with no teacher.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.errors import ConfigError, TrainingError, near_matches
from pipeline.training.rows import ShardReader, usable

UNLABELLED = -1
DEFAULT_LABEL_COLUMN = "label"


class LabelObjective(nn.Module):
    """A linear classifier over the embedding and its cross-entropy.

    Args:
        embedding_dim: width of the student's embedding.
        classes: the class names, sorted; a class's place is its code.
        codes: ``(store rows,)`` class code of every row, ``UNLABELLED`` where there is none.
    """

    codes: Tensor

    def __init__(self, embedding_dim: int, classes: list[str], codes: Int[Tensor, " rows"]) -> None:
        super().__init__()
        self.head: nn.Module = nn.Linear(embedding_dim, len(classes))
        self.classes = classes
        self.register_buffer("codes", codes, persistent=False)

    def usable(self, index: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Rows with a label of a class that training has."""
        mask: Tensor = self.codes[index] != UNLABELLED
        return mask

    def forward(
        self,
        embedding: Float[Tensor, "batch dim"],
        index: Int[Tensor, " batch"],
        teacher: Float[Tensor, "batch teacher"],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy, and it and the accuracy as terms; ``teacher`` is not looked at."""
        logits, codes = self.head(embedding.float()), self.codes[index]
        loss = nn.functional.cross_entropy(logits, codes)
        accuracy = (logits.argmax(dim=1) == codes).float().mean()
        return loss, {"cross_entropy": loss, "accuracy": accuracy}


def class_codes(reader: ShardReader, config: TrainConfig) -> tuple[list[str], Int[Tensor, " rows"]]:
    """Return the sorted classes that training rows carry, and every store row's code.

    Raises:
        ConfigError: no such column.
        TrainingError: fewer than two classes among the training rows.
    """
    column = config.label_column or DEFAULT_LABEL_COLUMN
    rows = reader.rows
    if column not in rows.columns:
        raise ConfigError(
            f"train.label_column names no column of the store: {column!r}",
            expected=near_matches(column, rows.columns), got=column, run="--set train.label_column=label",
        )  # fmt: skip
    labels = rows[column].fillna("").astype(str).to_numpy(dtype=object)
    classes = sorted({str(label) for label in labels[usable(reader, "train")] if label})
    if len(classes) < 2:
        raise TrainingError(
            "the labels control needs training rows of at least two classes",
            expected=f"two or more values in column {column!r}", got=classes or "no label at all",
            run="--set train.label_column=COLUMN, or leave the labels control out",
        )  # fmt: skip
    code = {name: place for place, name in enumerate(classes)}
    codes = np.array([code.get(str(label), UNLABELLED) for label in labels], dtype=np.int64)
    return classes, torch.from_numpy(codes)
