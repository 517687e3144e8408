"""Similarity-preserving loss: rows that activate alike in the teacher activate alike in the student.

Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.losses.direction import unit_rows
from pipeline.losses.inputs import working


def similarity_preserving(
    student: Float[Tensor, "batch student_dim"], teacher: Float[Tensor, "batch teacher_dim"]
) -> Float[Tensor, ""]:
    """Return the mean squared difference of the two Gram matrices, each row of them scaled to unit length.

    G = E E^T, each row over its length; the loss is the mean over all batch^2 entries (1 / batch^2 times the
    squared Frobenius norm) of the squared difference. No gradient flows into the teacher.

    Aligned: with whom a row goes together, in inner products from the origin; long rows count more, unlike in the
    cosine-wise loss, which normalises the embeddings instead. Invariant to a rotation and a common factor of
    either side's rows, not to a shift; the widths may differ. Computed in float32 or better, autocast or not;
    memory O(batch^2).

    Degenerate input, always finite:
        A zero row has a zero row of similarities and gets no gradient from it. Batch of 1: 0 (1 where one side is
        zero). Coinciding rows need no care.

    Args:
        student: the student's rows.
        teacher: the teacher's rows.

    Raises:
        ConfigError: unequal numbers of rows, or none.

    Example:
        >>> similarity_preserving(torch.randn(64, 128), torch.randn(64, 768))
    """
    student, teacher = working(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        got, want = (_normalised_gram(rows) for rows in (student, teacher))
        return (got - want).square().mean().to(student.dtype)


def _normalised_gram(rows: Tensor) -> Tensor:
    wide = rows.double()
    # Detached: the scale falls out of the normalised rows; without it tiny embeddings would count as zero.
    scale = wide.detach().square().sum(dim=1).mean().sqrt()
    wide = wide / torch.where(scale == 0, torch.ones_like(scale), scale)
    return unit_rows(wide @ wide.T)
