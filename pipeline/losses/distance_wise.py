"""Distance-wise loss: the pairwise distances of the student's batch follow those of the teacher's.

Relational Knowledge Distillation (RKD-D), Park, Kim, Lu and Cho, CVPR 2019.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline.losses.inputs import working
from pipeline.losses.pairwise import COINCIDENT_SHARE, differences


def distance_wise(
    student: Float[Tensor, "batch student_dim"], teacher: Float[Tensor, "batch teacher_dim"]
) -> Float[Tensor, ""]:
    """Return the smooth L1 loss between the two matrices of distances, each over its own mean.

    d_ij = |e_i - e_j| / (mean over i != j of |e_i - e_j|); the loss is the mean over all batch^2 entries,
    the zero diagonal included, of smooth L1 (beta 1) of d_ij(student) - d_ij(teacher). The gradient flows
    through the student's mean, never into the teacher.

    Aligned: which pairs are near and which are far. Invariant to a shift, a rotation and a common factor of
    either side's rows; the widths may differ. Computed in float32 or better, autocast or not.

    Degenerate input, always finite:
        Coinciding rows (closer than 1e-6 of their norms) count as pairs of a fixed negligible length and
        get no gradient from each other. If all rows of one side coincide, all its distances are equal,
        hence 1 after division, and its gradient is 0 (as published). Batch of 1: 0 (published: NaN).
        Batch of 2: 0, since the only distance is divided by itself.

    Args:
        student: the student's rows.
        teacher: the teacher's rows.

    Raises:
        ConfigError: unequal numbers of rows, or none.

    Example:
        >>> distance_wise(torch.randn(64, 128), torch.randn(64, 768))
    """
    student, teacher = working(student, teacher)
    with torch.no_grad():
        target = _normalised_distances(teacher)
    return F.smooth_l1_loss(_normalised_distances(student), target).to(student.dtype)


def _normalised_distances(rows: Tensor) -> Tensor:
    between = differences(rows)
    off_diagonal = 1.0 - torch.eye(len(rows), dtype=torch.float64, device=rows.device)
    lengths = between.lengths + COINCIDENT_SHARE * (off_diagonal - between.apart.double())
    pairs = max(len(rows) * (len(rows) - 1), 1)
    mean = lengths.sum() / pairs
    # Only a batch of 1 has the mean 0: there 0 / tiny is 0 with gradient 0.
    return lengths / mean.clamp(min=torch.finfo(torch.float64).tiny)
