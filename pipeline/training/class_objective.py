"""The part of an objective that is over classes: the teacher's logits, its tags and the store's labels."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pipeline.config import LossConfig
from pipeline.errors import ConfigError
from pipeline.losses.weighted_classes import WeightedClassLoss
from pipeline.training.controls import UNLABELLED, LabelTable
from pipeline.training.logits_table import LogitsTable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassSources:
    """Where a row's logits and labels are looked up; None where no term of the loss looks at them.

    Attributes:
        logits: the teacher's, by store row.
        names: of its classes, None where nobody says.
        labels: the store's.
    """

    logits: LogitsTable | None = None
    names: list[str] | None = None
    labels: LabelTable | None = None


class _Labels:
    """Labels by store row, as places in one list of classes. Copies share the array."""

    def __init__(self, table: LabelTable, classes: list[str] | None = None) -> None:
        names = table.classes if classes is None else classes
        place = np.array([names.index(name) for name in table.classes])
        if table.has_several:
            self.codes = np.zeros((len(table.codes), len(names)), dtype=np.int8)
            self.codes[:, place] = table.codes
            self.codes[~table.labelled] = UNLABELLED
        else:
            self.codes = np.where(table.labelled, place[table.codes], UNLABELLED)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Labels:
        return self

    def __call__(self, index: Int[Tensor, " batch"]) -> Int[Tensor, "batch ..."]:
        return torch.from_numpy(self.codes[index.cpu().numpy()]).to(index.device)


class ClassObjective(nn.Module):
    """Linear heads over the student's embedding, and the losses over classes with the weights of a recipe.

    One head has the teacher's classes, one those of the labels; where the teacher's classes are known by name and
    hold every label, one head serves both. The labels' share of the Hinton term always looks at the teacher's
    head, and so needs the names.

    Args:
        embedding_dim: width of the student's embedding.
        config: weights and kinds.
        sources: of logits and labels, as far as ``config`` needs them.
        smoothing: of the labels term.

    Raises:
        ConfigError: the Hinton term looks at labels, and they are several a row, or not among the teacher's
            classes, or nobody knows which class of the teacher's is which.
    """

    def __init__(
        self, embedding_dim: int, config: LossConfig, sources: ClassSources, smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.loss = WeightedClassLoss(config, smoothing)
        self.logits, names, table = sources.logits, sources.names, sources.labels
        shares_head = names is not None and table is not None and set(table.classes) <= set(names)
        if table is not None:
            require_mixable(config, table, names, has_logits=self.logits is not None)
        # Without the teacher's logits the Hinton term is the labels' cross-entropy.
        self.classes = names if shares_head or table is None else table.classes
        self.head = nn.ModuleDict()
        if self.logits is not None:
            self.head["teacher"] = nn.Linear(embedding_dim, self.logits.classes)
        self.labels: _Labels | None = None
        if table is not None:
            self.labels = _Labels(table, names if shares_head else None)
            if self.logits is None or not shares_head:
                self.head["labels"] = nn.Linear(embedding_dim, len(table.classes))
        self.label_head = "labels" if "labels" in self.head else "teacher"
        self.known: Bool[np.ndarray, " rows"] = np.logical_or.reduce(
            [part for part in (
                self.logits.known if self.logits is not None else None,
                table.labelled if table is not None else None,
            ) if part is not None]
        )  # fmt: skip

    def usable(self, index: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Rows with logits, or with a label."""
        return torch.from_numpy(self.known[index.cpu().numpy()]).to(index.device)

    @property
    def saved_heads(self) -> dict[str, nn.Module]:
        """File name to head: ``classifier.safetensors`` is over ``classes``, ``tags.safetensors`` the teacher's."""
        if "labels" not in self.head:
            return {"classifier.safetensors": self.head["teacher"]}
        files = {"labels": "classifier.safetensors", "teacher": "tags.safetensors"}
        return {files[name]: head for name, head in self.head.items()}

    def forward(
        self,
        embedding: Float[Tensor, "batch dim"],
        index: Int[Tensor, " batch"],
        teacher: Float[Tensor, "batch teacher"],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum and each term; the teacher's embeddings are not looked at."""
        made = {name: head(embedding.float()) for name, head in self.head.items()}
        labels = None if self.labels is None else self.labels(index)
        own = made[self.label_head] if labels is not None else None
        student = made.get("teacher", own)
        codes = labels if labels is not None and labels.ndim == 1 else None
        total: Tensor
        total, terms = self.loss(
            student, None if self.logits is None else self.logits(index), codes, own, labels
        )
        return total, terms


class MixedObjective(nn.Module):
    """The sum of an objective over embeddings and one over classes.

    Args:
        embeddings: over embeddings; has a target for every row.
        classes: over classes; rows without logits and labels leave its terms.
    """

    def __init__(self, embeddings: nn.Module, classes: ClassObjective) -> None:
        super().__init__()
        self.embeddings, self.classes = embeddings, classes

    @property
    def head(self) -> nn.Module:
        """The mapping head, from embedding to target."""
        return cast(nn.Module, self.embeddings.head)

    @property
    def saved_heads(self) -> dict[str, nn.Module]:
        """File name to head, over both parts."""
        heads: dict[str, nn.Module] = self.embeddings.saved_heads  # type: ignore[assignment]
        return {**heads, **self.classes.saved_heads}

    def usable(self, index: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Every row of a store has a teacher embedding."""
        return torch.ones_like(index, dtype=torch.bool)

    def forward(
        self,
        embedding: Float[Tensor, "batch dim"],
        index: Int[Tensor, " batch"],
        teacher: Float[Tensor, "batch teacher"],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of both parts, and the terms of both."""
        first, terms = self.embeddings(embedding, index, teacher)
        second, more = self.classes(embedding, index, teacher)
        return first + second, {**terms, **more}


def require_mixable(
    config: LossConfig, table: LabelTable, names: list[str] | None, *, has_logits: bool
) -> None:
    """Refuse a Hinton term whose labels cannot be placed among the teacher's classes.

    Raises:
        ConfigError: labels are several a row, or not among the classes, or nobody names the classes.
    """
    if not config.uses("hinton") or config.hinton_labels_share == 0:
        return
    if table.has_several:
        raise ConfigError(
            "loss.hinton takes one label a row", expected="train.label_kind = cross_entropy", got="several",
            run="--set loss.hinton=0 with loss.tags and loss.labels, which take several",
        )  # fmt: skip
    if not has_logits:
        return
    lacking = sorted(set(table.classes) - set(names or ()))
    if names is None:
        raise ConfigError(
            "loss.hinton weighs labels and logits on one head, and nobody says which class each logit is of",
            expected="loss.classes: a JSON list of the teacher's class names, in the order of its logits",
            got=f"no names of the teacher's classes; labels {', '.join(table.classes[:6])}",
            run="--set loss.classes=classes.json, or --set loss.hinton_alpha so that the labels have no share",
        )
    if lacking:
        raise ConfigError(
            f"{len(lacking)} labels are no classes of the teacher", expected=f"among {', '.join(names[:6])}, ...",
            got=", ".join(lacking[:6]), run="--set train.label_column=COLUMN, or loss.labels beside loss.hinton",
        )  # fmt: skip
