"""Training on labels, and the two controls that say what distillation is worth.

``random``: the student as it was initialised, no step made; its score is the floor. ``labels``: the same
student, trained on the store's label column alone, with no teacher; from a finished run (``train.start_from``)
it is the supervised fine-tuning of a distilled student.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import TrainConfig
from pipeline.errors import ConfigError, TrainingError, near_matches
from pipeline.training.rows import ShardReader, usable

UNLABELLED = -1
DEFAULT_LABEL_COLUMN = "label"
SEPARATOR = ";"


@dataclass(frozen=True)
class LabelTable:
    """The labels of a store.

    Attributes:
        classes: names, sorted; a class's place is its code.
        codes: ``(rows,)`` class of every store row, or ``(rows, classes)`` 0 and 1 where rows have several.
        labelled: ``(rows,)`` which rows have a label of ``classes``.
    """

    classes: list[str]
    codes: Int[np.ndarray, "rows ..."]
    labelled: Bool[np.ndarray, " rows"]

    @property
    def has_several(self) -> bool:
        """Whether a row may have several labels."""
        return self.codes.ndim == 2


class LabelObjective(nn.Module):
    """A linear classifier over the embedding and its cross-entropy, binary where rows have several labels.

    Args:
        embedding_dim: width of the student's embedding.
        table: the store's labels.
        smoothing: share of each label spread over all classes (Szegedy et al., CVPR 2016).
    """

    codes: Tensor
    labelled: Tensor

    def __init__(self, embedding_dim: int, table: LabelTable, smoothing: float = 0.0) -> None:
        super().__init__()
        self.head: nn.Module = nn.Linear(embedding_dim, len(table.classes))
        self.classes, self.smoothing, self.has_several = table.classes, smoothing, table.has_several
        codes = table.codes.astype(np.uint8) if table.has_several else table.codes
        self.register_buffer("codes", torch.from_numpy(codes), persistent=False)
        self.register_buffer("labelled", torch.from_numpy(table.labelled), persistent=False)

    @property
    def saved_heads(self) -> dict[str, nn.Module]:
        """File name to head."""
        return {"classifier.safetensors": self.head}

    def usable(self, index: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Rows with a label of a class that training has."""
        mask: Tensor = self.labelled[index]
        return mask

    def forward(
        self,
        embedding: Float[Tensor, "batch dim"],
        index: Int[Tensor, " batch"],
        teacher: Float[Tensor, "batch teacher"],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and it and the accuracy as terms; ``teacher`` is not looked at.

        Of rows with several labels, accuracy is the share of them whose likeliest class is one of theirs.
        """
        logits, codes = self.head(embedding.float()), self.codes[index]
        guess = logits.argmax(dim=1)
        if self.has_several:
            truth = codes.float() * (1 - self.smoothing) + self.smoothing / 2
            loss = F.binary_cross_entropy_with_logits(logits, truth)
            hit = codes.gather(1, guess[:, None]).float().mean()
            return loss, {"binary_cross_entropy": loss, "accuracy": hit}
        loss = F.cross_entropy(logits, codes, label_smoothing=self.smoothing)
        return loss, {"cross_entropy": loss, "accuracy": (guess == codes).float().mean()}


def label_table(reader: ShardReader, config: TrainConfig) -> LabelTable:
    """Return the classes that training rows carry, and every store row's.

    Raises:
        ConfigError: no such column.
        TrainingError: fewer than two classes among the training rows.
    """
    column = config.label_column or DEFAULT_LABEL_COLUMN
    several = config.label_kind == "bce"
    texts = column_text(reader, column, "train.label_column")
    rows = [
        [part.strip() for part in text.split(SEPARATOR) if part.strip()] if several else [text] * bool(text)
        for text in texts
    ]
    seen = {
        label for labels, used in zip(rows, usable(reader, "train"), strict=True) if used for label in labels
    }
    classes = sorted(seen)
    if len(classes) < 2:
        raise TrainingError(
            "learning from labels needs training rows of at least two classes",
            expected=f"two or more values in column {column!r}", got=classes or "no label at all",
            run="--set train.label_column=COLUMN, or leave out what learns from labels",
        )  # fmt: skip
    code = {name: place for place, name in enumerate(classes)}
    hot = np.zeros((len(rows), len(classes)), dtype=np.int8)
    for row, labels in enumerate(rows):
        hot[row, [code[label] for label in labels if label in code]] = 1
    labelled = np.asarray(hot.any(axis=1))
    return LabelTable(
        classes, hot if several else np.where(labelled, hot.argmax(axis=1), UNLABELLED), labelled
    )


def column_text(reader: ShardReader, column: str, key: str) -> list[str]:
    """Return a column of the store's rows as text, empty where a row has none.

    Raises:
        ConfigError: no such column; ``key`` is the recipe's key that names it.
    """
    rows = reader.rows
    if column not in rows.columns:
        raise ConfigError(
            f"{key} names no column of the store: {column!r}",
            expected=near_matches(column, rows.columns), got=column, run=f"--set {key}=label",
        )  # fmt: skip
    return [str(value) for value in rows[column].fillna("").astype(str)]
