"""Angle-wise loss: the angles between the rows of the student's batch follow those of the teacher's.

Relational Knowledge Distillation (RKD-A), Park, Kim, Lu and Cho, CVPR 2019. The published formula holds
batch x batch x dim differences and several batch^3 matrices at once; here value and gradient are exact in
O(batch^2) memory.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.losses.inputs import working
from pipeline.losses.pairwise import Differences, differences

# The gradient of a direction grows as 1 / length; shorter differences get that of this length, in units of
# the rows' root-mean-square norm.
SHORTEST_FOR_GRADIENT = 1e-3
# Cosines held at once. Fewer leave a core waiting for the next small operation, more leave its cache.
COSINES_AT_ONCE = 2**21


def angle_wise(
    student: Float[Tensor, "batch student_dim"], teacher: Float[Tensor, "batch teacher_dim"]
) -> Float[Tensor, ""]:
    """Return the smooth L1 loss between the cosines of all triples of rows.

    a_ijk = cos(e_j - e_i, e_k - e_i), with 0 for a difference of length 0; the loss is the mean over all
    batch^3 triples, the degenerate ones included, of smooth L1 (beta 1) of a_ijk(student) -
    a_ijk(teacher). No gradient flows into the teacher.

    Aligned: the shape of every triangle. Invariant to a shift, a rotation and a common factor of either
    side's rows; the widths may differ. Time grows as batch^3, whatever the widths; memory as batch^2.
    Computed in float32 (float64 where a side is float64), autocast or not. Once differentiable.

    Degenerate input, always finite:
        Coinciding rows (closer than 1e-6 of their norms) have a difference of length 0, whose cosines are 0
        and whose gradient is 0 (published: gradient 1e7 and more). The gradient that a pair closer than
        1e-3 of the root-mean-square norm gets is that of a pair at 1e-3; elsewhere it is the published one.
        If all the student's rows coincide the gradient is 0. A batch of 1 or 2 has no triangle: 0.

    Args:
        student: the student's rows.
        teacher: the teacher's rows.

    Raises:
        ConfigError: unequal numbers of rows, or none.

    Example:
        >>> angle_wise(torch.randn(64, 128), torch.randn(64, 768))
    """
    student, teacher = working(student, teacher)
    with_gradient = torch.is_grad_enabled() and student.requires_grad
    loss: Tensor = _AngleWise.apply(student, teacher, with_gradient)
    return loss


class _AngleWise(torch.autograd.Function):
    """Makes the gradient together with the value, so that no cosine is kept or made twice."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, with_gradient: bool) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            value, gradient = _value_and_gradient(student, teacher, with_gradient)
        ctx.save_for_backward(*(() if gradient is None else (gradient,)))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None


class _Side:
    """One side's matrices: the cosines at anchor i are r_j r_k G_jk + a_j r_k + r_j a_k.

    r is row i of ``inverse``, a is row i of ``correction``, G is ``gram``.
    """

    def __init__(self, between: Differences, dtype: torch.dtype) -> None:
        inverse = torch.where(between.apart, 1.0 / between.lengths, 0.0)
        own = between.gram.diagonal()
        self.gram = between.gram.to(dtype)
        self.inverse = inverse.to(dtype)
        self.correction = (inverse * (0.5 * own[:, None] - between.gram)).to(dtype)


def _value_and_gradient(
    student: Tensor, teacher: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    between = differences(student)
    ours, theirs = _Side(between, student.dtype), _Side(differences(teacher), student.dtype)
    # Both sides' low-rank corrections in one product: [a r -a' -r'] [r a r' a']^T.
    left = torch.stack((ours.correction, ours.inverse, -theirs.correction, -theirs.inverse), dim=2)
    right = torch.stack((ours.inverse, ours.correction, theirs.inverse, theirs.correction), dim=1)
    sums = _GradientSums(between, ours) if with_gradient else None

    batch = len(student)
    anchors = max(1, min(batch, COSINES_AT_ONCE // batch**2))
    error = student.new_empty(anchors, batch, batch)
    slope = torch.empty_like(error)
    total = student.new_zeros((), dtype=torch.float64)
    for start in range(0, batch, anchors):
        at = slice(start, min(start + anchors, batch))
        x, c = error[: at.stop - start], slope[: at.stop - start]
        torch.mul(ours.gram, ours.inverse[at, :, None], out=x)
        x.mul_(ours.inverse[at, None, :])
        torch.mul(theirs.gram, theirs.inverse[at, :, None], out=c)
        x.addcmul_(c, theirs.inverse[at, None, :], value=-1.0)
        x.baddbmm_(left[at], right[at])
        # Smooth L1 of x is c (x - c / 2) and its derivative is c, with c = clamp(x, -1, 1).
        torch.clamp(x, -1.0, 1.0, out=c)
        x.add_(c, alpha=-0.5).mul_(c)
        total += x.sum().double()
        if sums is not None:
            sums.add(at, c)
    triples = float(batch) ** 3
    gradient = None if sums is None else (sums.gradient() / triples).to(student.dtype)
    return (total / triples).to(student.dtype), gradient


class _GradientSums:
    """Sums over the triples from which the gradient follows.

    With c_ijk the slope of the loss at a_ijk and s_ij = sum_k c_ijk a_ijk, the gradient with respect to
    the difference e_j - e_i is
        t_ij = 2 [sum_k r_ij c_ijk r_ik (e_k - e_i) - s_ij r_ij^2 (e_j - e_i)],
    it is added to row j and taken from row i. All of it is one (batch, batch) matrix, with rows that sum to
    0, times the rows.
    """

    def __init__(self, between: Differences, side: _Side) -> None:
        self.between, self.side = between, side
        self.inverse = torch.where(between.apart, 1.0 / between.lengths, 0.0)
        self.share = (between.lengths / SHORTEST_FOR_GRADIENT).clamp(max=1.0)
        shape, dtype = between.gram.shape, side.gram.dtype
        share = self.share.to(dtype)
        self.columns = torch.stack((torch.ones_like(share), side.gram, share), dim=2)
        self.weight = share * side.inverse
        self.over_anchors = torch.zeros(shape, dtype=torch.float64, device=share.device)
        self.over_third = share.new_empty(*shape, 3)
        self.with_gram = torch.empty_like(share)

    def add(self, at: slice, c: Tensor) -> None:
        """Add the triples of some anchors; ``c`` (anchors, batch, batch) is used up."""
        c.mul_(self.side.inverse[at, None, :])
        torch.bmm(c, self.columns[at], out=self.over_third[at])
        self.with_gram[at] = torch.bmm(c.transpose(0, 1), self.side.gram[:, :, None])[:, :, 0].T
        c.mul_(self.weight[at, :, None])
        self.over_anchors += c.sum(dim=0)

    def gradient(self) -> Tensor:
        """Return the gradient of the sum over all triples with respect to the student's rows, float64."""
        gram, r = self.between.gram, self.inverse
        plain, with_anchor, shared = (self.over_third.double() * r[:, :, None]).unbind(dim=2)
        s = r * self.with_gram.double() - (gram - gram.diagonal()[:, None]) * plain - with_anchor
        pull = self.share * r.square() * s
        matrix = self.over_anchors - (self.share * plain).T - shared + pull + pull.T
        matrix -= torch.diag(matrix.sum(dim=1))
        return 2.0 * (matrix @ self.between.rows) / self.between.scale
