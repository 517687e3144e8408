"""The relational losses of Park et al. (CVPR 2019), written as their formulas read: slow and hungry."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def all_cosines(rows: Tensor) -> Tensor:
    """Return cos(e_j - e_i, e_k - e_i) at [i, j, k] by normalised differences and a batched product."""
    differences = rows.unsqueeze(0) - rows.unsqueeze(1)
    directions = F.normalize(differences, p=2.0, dim=2)
    return torch.bmm(directions, directions.transpose(1, 2))


def angle_wise(student: Tensor, teacher: Tensor) -> Tensor:
    """Return RKD-A: smooth L1 over all B^3 cosines, the degenerate triples included."""
    with torch.no_grad():
        target = all_cosines(teacher)
    return F.smooth_l1_loss(all_cosines(student), target)


def distances(rows: Tensor) -> Tensor:
    """Return |e_i - e_j| (at least 1e-6, diagonal 0) by direct differences, over the mean of those > 0."""
    squared = (rows.unsqueeze(0) - rows.unsqueeze(1)).square().sum(dim=2)
    apart = 1.0 - torch.eye(len(rows), dtype=rows.dtype)
    lengths = squared.clamp(min=1e-12).sqrt() * apart
    return lengths / lengths[lengths > 0].mean()


def distance_wise(student: Tensor, teacher: Tensor) -> Tensor:
    """Return RKD-D: smooth L1 over all B^2 distances, each matrix divided by its mean."""
    with torch.no_grad():
        target = distances(teacher)
    return F.smooth_l1_loss(distances(student), target)
