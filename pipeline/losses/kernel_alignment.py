"""Kernel alignment: the centred kernel matrices of the two batches point the same way (CKA).

Cortes, Mohri and Rostamizadeh, JMLR 2012; Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network
Representations Revisited", ICML 2019. The unbiased estimator is that of Song, Smola, Gretton, Bedo and Borgwardt,
JMLR 2012, as Nguyen, Raghu and Kornblith, ICLR 2021, use it on batches.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.losses.inputs import working
from pipeline.losses.pairwise import differences, spread_rows

KernelKind = Literal["linear", "rbf"]

# The unbiased estimator divides by batch - 3.
SMALLEST_UNBIASED = 4
# Of the kernels' squared norms, which are of the order of 1: below it a kernel holds rounding errors alone.
SMALLEST_NORM = 1e-24


def kernel_alignment(
    student: Float[Tensor, "batch student_dim"],
    teacher: Float[Tensor, "batch teacher_dim"],
    kernel: KernelKind = "linear",
    bandwidth: float = 1.0,
    unbiased: bool = False,
) -> Float[Tensor, ""]:
    """Return 1 - CKA, CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), in 0 (the same kernel up to scale) to 1.

    K and L are the student's and the teacher's kernels of all pairs of rows, HSIC the mean product of their
    entries after centring. "linear": inner products; "rbf": exp(-|e_i - e_j|^2 / (2 (bandwidth m)^2)), m the
    median distance between rows, through which the gradient flows. No gradient flows into the teacher.

    Aligned: the directions of largest variance above all ("linear"), or neighbourhoods of about the bandwidth
    ("rbf"). Invariant to a shift, a rotation and a common factor of either side's rows; the widths may differ.
    ``unbiased`` leaves the diagonals out, so that the value does not fall with the batch; it may exceed 1.
    Computed in float64, returned in float32 (float64 where a side is float64); memory O(batch^2).

    Degenerate input, always finite:
        A side whose rows all coincide has nothing to align: 1, with gradient 0; so has a batch of 1, and for
        the unbiased estimator one of fewer than 4. Linear, batch of 2: 0.

    Args:
        student: the student's rows.
        teacher: the teacher's rows.
        kernel: of both sides.
        bandwidth: of "rbf", in medians of the distances.
        unbiased: which estimator of HSIC.

    Raises:
        ConfigError: unequal numbers of rows or none, or a bandwidth that is not above 0.

    Example:
        >>> kernel_alignment(torch.randn(64, 128), torch.randn(64, 768), unbiased=True)
    """
    if not bandwidth > 0:
        raise ConfigError("a kernel's bandwidth is above 0", expected="> 0", got=bandwidth)
    student, teacher = working(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (_kernel(rows, kernel, bandwidth) for rows in (student, teacher))
        if unbiased and len(ours) < SMALLEST_UNBIASED:
            # Both terms keep the graph, and NaN stays NaN.
            return (1.0 + 0.0 * (ours.sum() + theirs.sum())).to(student.dtype)
        ours, theirs = ((_u_centred if unbiased else _centred)(matrix) for matrix in (ours, theirs))
        norms = ours.square().sum(), theirs.square().sum()
        alike = (ours * theirs).sum()
        # One root a side: the product of two small norms would underflow.
        for norm in norms:
            alike = alike / norm.clamp(min=SMALLEST_NORM).sqrt()
        return (1.0 - alike).to(student.dtype)


def _kernel(rows: Tensor, kernel: KernelKind, bandwidth: float) -> Tensor:
    if kernel == "linear":
        spread = spread_rows(rows)
        return spread @ spread.T / len(rows)
    between = differences(rows)
    squared = between.lengths.square()
    apart = between.lengths[between.apart]
    median = apart.median() if len(apart) else between.lengths.new_ones(())
    return torch.exp(-squared / (2.0 * (bandwidth * median) ** 2)) / len(rows)


def _centred(matrix: Tensor) -> Tensor:
    means = matrix.mean(dim=0)
    return matrix - means[:, None] - means[None, :] + means.mean()


def _u_centred(matrix: Tensor) -> Tensor:
    """Return the U-centred matrix, whose mean products are unbiased (Székely and Rizzo, 2014); diagonal 0."""
    rows = len(matrix)
    apart = 1.0 - torch.eye(rows, dtype=matrix.dtype, device=matrix.device)
    off = matrix * apart
    sums = off.sum(dim=0) / (rows - 2)
    return (off - sums[:, None] - sums[None, :] + off.sum() / ((rows - 1) * (rows - 2))) * apart
