"""The weighted sum of the losses over classes that a recipe asks for."""

from __future__ import annotations

from typing import TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from pipeline.config import LossConfig
from pipeline.errors import ConfigError
from pipeline.losses.hinton import hinton
from pipeline.losses.labels import label_loss
from pipeline.losses.scheduled import Scheduled
from pipeline.losses.teacher_tags import teacher_tags

Given = TypeVar("Given")


class WeightedClassLoss(Scheduled):
    """Sums the losses over classes with the weights of a recipe.

    A term whose weight is 0 at every step is neither computed nor reported.

    Args:
        config: the weights and kinds.
        smoothing: share of each label spread over all classes, in the labels term.

    Example:
        >>> loss = WeightedClassLoss(LossConfig(feature=0, hinton=1, hinton_alpha_weighs="labels"))
        >>> total, terms = loss(logits, teacher_logits)  # terms: {"hinton": ...}
    """

    def __init__(self, config: LossConfig, smoothing: float = 0.0) -> None:
        super().__init__(config)
        self.smoothing = smoothing

    def forward(
        self,
        student: Float[Tensor, "batch teacher_classes"] | None = None,
        teacher: Float[Tensor, "batch teacher_classes"] | None = None,
        codes: Shaped[Tensor, " batch"] | None = None,
        label_logits: Float[Tensor, "batch label_classes"] | None = None,
        labels: Shaped[Tensor, "batch ..."] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Return the weighted sum and each term before its weight (detached), by name.

        Rows whose teacher logits are not finite (none were cached for them) leave the teacher's terms, rows
        without a label the labels'; both are means over the rows that remain, 0 where none does. A weight that
        follows a schedule is among the terms as ``NAME_weight`` while training.

        Args:
            student: the student's logits over the teacher's classes.
            teacher: the teacher's logits.
            codes: place of each row's label among the teacher's classes, negative = none; for the labels' share of
                the Hinton term.
            label_logits: the student's logits over the label classes, for the labels term.
            labels: class codes (batch,) or 0 and 1 (batch, label_classes), as ``label_loss`` takes them, for the
                labels term.

        Raises:
            ConfigError: an input that a term needs is None, or shapes do not fit.
        """
        config = self.config
        terms: dict[str, Tensor] = {}
        weight: Tensor | None = None
        if config.needs_logits:
            known = _given(teacher, "the teacher's logits").isfinite().all(dim=1)
            teacher = torch.where(known[:, None], _given(teacher, "the teacher's logits"), 0.0)
            weight = known * (len(known) / known.sum().clamp(min=1))
        if config.uses("hinton"):
            terms["hinton"] = hinton(
                _given(student, "the student's logits"), teacher if config.needs_logits else None,
                codes if config.hinton_labels_share > 0 else None,
                alpha=config.hinton_alpha, alpha_weighs=_given(config.hinton_alpha_weighs, "hinton_alpha_weighs"),
                temperature=config.hinton_temperature, reduction=config.hinton_reduction,
                teacher_row_weight=weight,
            )  # fmt: skip
        if config.uses("tags"):
            terms["tags"] = teacher_tags(
                _given(student, "the student's logits"), _given(teacher, "the teacher's logits"),
                config.tags_kind, config.tags_temperature, weight,
            )  # fmt: skip
        if config.uses("labels"):
            known_labels = _given(labels, "labels")
            terms["labels"] = label_loss(
                _given(label_logits, "the student's logits of the labels"), known_labels,
                "cross_entropy" if known_labels.ndim == 1 else "bce", smoothing=self.smoothing,
            )  # fmt: skip
        if not terms:
            raise ConfigError(
                "no term of the loss looks at classes", expected="a weight of hinton, tags or labels"
            )
        return self.weighted(terms)


def _given(value: Given | None, what: str) -> Given:
    if value is None:
        raise ConfigError("a loss over classes was not given what it compares", expected=what, got="None")
    return value
