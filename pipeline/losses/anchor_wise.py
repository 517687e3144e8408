"""Anchor-wise loss: the student's distances to fixed points of its space follow the teacher's to theirs.

RKD-D (Park et al., CVPR 2019) compares the rows of a batch with each other; here each is compared with anchors
that stand for the whole store, so that relations reach beyond the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.losses.inputs import working


def anchor_wise(
    student: Float[Tensor, "batch student_dim"],
    teacher: Float[Tensor, "batch teacher_dim"],
    student_anchors: Float[Tensor, "anchors student_dim"],
    teacher_anchors: Float[Tensor, "anchors teacher_dim"],
) -> Float[Tensor, ""]:
    """Return the smooth L1 loss between the two matrices of distances to anchors, each over its own mean.

    d_im = |e_i - a_m| / (mean over all i and m of |e_i - a_m|); the loss is the mean over batch x anchors
    entries of smooth L1 (beta 1) of d_im(student) - d_im(teacher). The gradient flows into the student's rows,
    through its mean too; never into the anchors nor the teacher.

    Aligned: how far each row is from every anchor. Invariant to a shift, a rotation and a common factor of
    either side with its anchors; the widths may differ. Computed in float32 or better, autocast or not.

    Degenerate input, always finite: a row on an anchor gets no gradient from it; if all rows of a side lie on
    all anchors, its distances are 0. No anchors: 0.

    Raises:
        ConfigError: rows and anchors do not belong together.
    """
    student, teacher = working(student, teacher)
    if len(student_anchors) != len(teacher_anchors):
        raise ConfigError(
            "an anchor has two sides",
            expected=f"{len(teacher_anchors)} of the student's", got=len(student_anchors),
        )  # fmt: skip
    if not len(student_anchors):
        return student.sum() * 0.0
    with torch.autocast(student.device.type, enabled=False):
        got = _relative(student, student_anchors.detach().to(student.dtype))
        want = _relative(teacher, teacher_anchors.detach().to(student.dtype))
        return F.smooth_l1_loss(got, want)


def _relative(rows: Tensor, anchors: Tensor) -> Tensor:
    # By differences, not by a Gram matrix: near an anchor that would lose half of the digits.
    distances = torch.cdist(rows, anchors, compute_mode="donot_use_mm_for_euclid_dist")
    return distances / distances.mean().clamp(min=torch.finfo(rows.dtype).tiny)
