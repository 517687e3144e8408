"""What every loss does with its inputs first: check, leave half precision, cut the teacher's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import ConfigError


def working(
    student: Tensor, teacher: Tensor, *, same_width: bool = False, mend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return both in the precision that the loss is computed in: float32, or float64 if either is.

    Args:
        student: (batch, student_dim).
        teacher: (batch, teacher_dim); comes back detached.
        same_width: whether student_dim must equal teacher_dim.
        mend: what to do where it is not.

    Raises:
        ConfigError: not two matrices of equally many rows (at least one), or of unequal width where it must
            be equal.
    """
    fits = student.ndim == 2 and teacher.ndim == 2 and len(student) == len(teacher) >= 1
    if not fits:
        raise ConfigError(
            "a loss needs one row of the teacher for each row of the student",
            expected="(batch, student_dim) and (batch, teacher_dim), batch at least 1",
            got=f"{tuple(student.shape)} and {tuple(teacher.shape)}",
        )
    if same_width and student.shape[1] != teacher.shape[1]:
        raise ConfigError(
            "the loss compares student and teacher entry by entry",
            expected=f"rows of the target's width, {teacher.shape[1]}",
            got=f"width {student.shape[1]}",
            run=mend or "put a projector between the student's embedding and the target",
        )
    dtype = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    return student.to(dtype), teacher.detach().to(dtype)


def mean_over_rows(values: Tensor, row_weight: Tensor | None) -> Tensor:
    """Return the mean over the batch of each row's value times its weight; without weights, the mean.

    Args:
        values: (batch,).
        row_weight: (batch,); under mixup, each row's share of this target.
    """
    return values.mean() if row_weight is None else (values * row_weight.to(values.dtype)).mean()
