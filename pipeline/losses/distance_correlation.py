"""Distance correlation: the centred distance matrices of the two batches are correlated, whatever the widths.

EAsT, Ding and Lerch, "Audio Embeddings as Teachers for Music Classification", ISMIR 2023; the statistic is that
of Székely, Rizzo and Bakirov, Annals of Statistics 2007, squared.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.losses.inputs import working
from pipeline.losses.pairwise import spread_rows

DistanceCorrelationKind = Literal["published", "scale_free"]

# Under the root of every squared distance, and under that of the product of the variances (EAsT).
DISTANCE_FLOOR = 1e-12
VARIANCE_FLOOR = 1e-9


def distance_correlation(
    student: Float[Tensor, "batch student_dim"],
    teacher: Float[Tensor, "batch teacher_dim"],
    kind: DistanceCorrelationKind = "published",
) -> Float[Tensor, ""]:
    """Return 1 - the squared distance correlation of the rows, in 0 (the same up to scale) to 1.

    With a_ij = sqrt(|e_i - e_j|^2 + 1e-12) and A = a minus its row and column means plus its mean:
    1 - mean(A B) / sqrt(mean(A^2) mean(B^2) + 1e-9), means over all batch^2 entries. No gradient flows into the
    teacher.

    Aligned: which pairs are nearer or farther than their rows' averages. Invariant to a shift and a rotation of
    either side's rows; the widths may differ. To their scale only as long as the constant 1e-9 is small beside
    the product of the variances: rows of norm 0.01 already read as less correlated. "scale_free" takes each
    side in units of its root-mean-square norm and leaves the constant out. Computed in float64, returned in
    float32 (float64 where a side is float64), autocast or not; memory O(batch^2).

    Degenerate input, always finite:
        A batch of 1, or a side whose rows all coincide, has no variance: 1, with gradient 0. Batch of 2: 0.
        Coinciding rows and zero rows need no care: the constant under the root bounds their gradient. As
        published, rows that are spread over less than about 1e-4 get gradients of up to 1e4.

    Args:
        student: the student's rows.
        teacher: the teacher's rows.
        kind: with the published constant, or free of it.

    Raises:
        ConfigError: unequal numbers of rows, or none.

    Example:
        >>> distance_correlation(torch.randn(64, 128), torch.randn(64, 768))
    """
    student, teacher = working(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (_centred_distances(rows.double(), kind) for rows in (student, teacher))
        variances = ours.square().mean() * theirs.square().mean()
        if kind == "published":
            variances = variances + VARIANCE_FLOOR
        # The least float64 keeps 0 / 0 out of the value and out of the gradient.
        correlation = (ours * theirs).mean() / variances.clamp(min=torch.finfo(torch.float64).tiny).sqrt()
        return (1.0 - correlation).to(student.dtype)


def distance_correlation_over_time(
    student: Float[Tensor, "batch student_frames student_dim"],
    teacher: Float[Tensor, "batch teacher_frames teacher_dim"],
    student_expand: int | None = None,
    teacher_expand: int | None = None,
    kind: DistanceCorrelationKind = "published",
) -> Float[Tensor, ""]:
    """Return the distance correlation loss of feature sequences, frame by frame or of their time means.

    With both factors, each frame is repeated so many times, the longer side is cut, and the mean over time of
    each frame's loss over the batch is returned; with neither, the loss of the means over time (EAsT's two
    ways).

    Args:
        student: the student's features.
        teacher: the teacher's features.
        student_expand: times each of the student's frames is repeated.
        teacher_expand: times each of the teacher's.
        kind: as in ``distance_correlation``.

    Raises:
        ConfigError: one factor without the other, one below 1, or no frame.

    Example:
        >>> distance_correlation_over_time(torch.randn(8, 5, 24), torch.randn(8, 10, 40), 2, 1)
    """
    if (student_expand is None) != (teacher_expand is None) or min(
        student_expand or 1, teacher_expand or 1
    ) < 1:
        raise ConfigError(
            "frames are repeated on both sides or on neither",
            expected="two factors of at least 1, or none", got=(student_expand, teacher_expand),
        )  # fmt: skip
    if student.ndim != 3 or teacher.ndim != 3 or 0 in (student.shape[1], teacher.shape[1]):
        raise ConfigError(
            "feature sequences have a batch, frames and a width",
            expected="(batch, frames, dim) with at least one frame",
            got=f"{tuple(student.shape)} and {tuple(teacher.shape)}",
        )
    if student_expand is None or teacher_expand is None:
        return distance_correlation(student.mean(dim=1), teacher.mean(dim=1), kind)
    student = student.repeat_interleave(student_expand, dim=1)
    teacher = teacher.repeat_interleave(teacher_expand, dim=1)
    frames = min(student.shape[1], teacher.shape[1])
    each = [distance_correlation(student[:, t], teacher[:, t], kind) for t in range(frames)]
    return torch.stack(each).mean()


def _centred_distances(rows: Tensor, kind: DistanceCorrelationKind) -> Tensor:
    centred = spread_rows(rows) if kind == "scale_free" else rows - rows.mean(dim=0)
    gram = centred @ centred.T
    own = gram.diagonal()
    squared = own[:, None] + own[None, :] - 2.0 * gram
    # Rounding may leave less than 0 where rows coincide; a NaN must stay one.
    distances = (squared.clamp(min=0.0) + DISTANCE_FLOOR).sqrt()
    means = distances.mean(dim=0)
    return distances - means[:, None] - means[None, :] + means.mean()
