"""Labels: the cross-entropy of one class a clip, or the binary cross-entropy of several."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from pipeline.errors import ConfigError

LabelsKind = Literal["cross_entropy", "bce"]


def label_loss(
    student: Float[Tensor, "batch classes"],
    labels: Shaped[Tensor, "batch ..."],
    kind: LabelsKind = "cross_entropy",
    row_weight: Float[Tensor, " batch"] | None = None,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the mean loss of the labelled rows.

    "cross_entropy": -log softmax(student)[label]. "bce": the binary cross-entropy of every class, averaged over
    the classes. Rows without a label count neither in the sum nor in the number of rows; where no row has one the
    loss is 0, with gradient 0. Computed in float32 or better, autocast or not.

    Args:
        student: the student's logits.
        labels: "cross_entropy": class codes (batch,), integers, negative = no label. "bce": (batch, classes) of 0
            and 1 (or shares between them, as mixup gives), a row with any negative entry = no label.
        kind: one class a row, or several.
        row_weight: of each row in the mean (mixup).
        smoothing: share of each label spread over all classes (Szegedy et al., CVPR 2016); with bce, over both
            outcomes of each class.

    Raises:
        ConfigError: labels of another form than ``kind`` needs.

    Example:
        >>> label_loss(head(embedding), torch.tensor([0, 3, -1, 2]))
    """
    wanted = student.shape[:1] if kind == "cross_entropy" else student.shape
    if (
        student.ndim != 2
        or labels.shape != wanted
        or (kind == "cross_entropy" and labels.is_floating_point())
    ):
        raise ConfigError(
            f"labels of another form than {kind} takes",
            expected="(batch, classes) logits and class codes (batch,), or for bce 0 and 1 (batch, classes)",
            got=f"{tuple(student.shape)} and {labels.dtype} {tuple(labels.shape)}",
        )
    student = student if student.dtype == torch.float64 else student.float()
    with torch.autocast(student.device.type, enabled=False):
        if kind == "cross_entropy":
            labelled = labels >= 0
            each = F.cross_entropy(
                student, labels.clamp(min=0).long(), reduction="none", label_smoothing=smoothing
            )
        else:
            labelled = (labels >= 0).all(dim=1)
            known = labels.clamp(min=0).to(student.dtype) * (1.0 - smoothing) + smoothing / 2.0
            each = F.binary_cross_entropy_with_logits(student, known, reduction="none").mean(dim=1)
        weight = labelled.to(each.dtype)
        rows = weight.sum().clamp(min=1.0)
        if row_weight is not None:
            weight = weight * row_weight.to(each.dtype)
        return (each * weight).sum() / rows
