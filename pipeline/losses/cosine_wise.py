"""Cosine-wise loss: the cosine-similarity matrix of the student's batch follows that of the teacher's.

With ``kind="l1"`` it is the cosine-distance difference of EAsT (Ding and Lerch, "Audio Embeddings as Teachers
for Music Classification", ISMIR 2023). In the manner of similarity-preserving distillation (Tung and Mori,
ICCV 2019), which normalises the rows of the similarity matrix instead of the embeddings.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline.losses.direction import unit_rows
from pipeline.losses.inputs import working

CosineKind = Literal["mse", "smooth_l1", "l1"]


def cosine_wise(
    student: Float[Tensor, "batch student_dim"],
    teacher: Float[Tensor, "batch teacher_dim"],
    kind: CosineKind = "mse",
) -> Float[Tensor, ""]:
    """Return the mean difference of the two matrices of cosine similarities.

    c_ij = <e_i, e_j> / (|e_i| |e_j|); the loss is the mean over all batch^2 entries, the diagonal included,
    of the squared ("mse"), smooth L1 (beta 1) or absolute ("l1") difference of c_ij. No gradient flows into
    the teacher.

    Aligned: which rows point the same way as seen from the origin. Invariant to a rotation of either side
    and to the length of each row, not to a shift; the widths may differ. Computed in float32 or better,
    autocast or not.

    Degenerate input, always finite:
        A zero row has cosine 0 with every row, itself included, and gets no gradient (published: 1e8 and
        more). Rows shorter than 1e-3 of the batch's root-mean-square norm get the gradient of a row of that
        norm. Batch of 1: 0, for the cosine of a row with itself is 1 on both sides. Coinciding rows need
        no care.

    Args:
        student: the student's rows.
        teacher: the teacher's rows.
        kind: how two cosines are compared.

    Raises:
        ConfigError: unequal numbers of rows, or none.

    Example:
        >>> cosine_wise(torch.randn(64, 128), torch.randn(64, 768), kind="l1")
    """
    student, teacher = working(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        got, want = (unit @ unit.T for unit in (unit_rows(student), unit_rows(teacher)))
        if kind == "mse":
            return F.mse_loss(got, want)
        return F.smooth_l1_loss(got, want) if kind == "smooth_l1" else F.l1_loss(got, want)
