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
COSINES_AT_ONCE = 2**20


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
    """Makes one side's cosines: r_j r_k (G_jk + b_j + b_k), with r row i of 1 / length and b row i of ``shift``.

    Close rows cancel in the bracket, and r is large there: the sum is made in float64.
    """

    def __init__(self, between: Differences, dtype: torch.dtype) -> None:
        own = between.gram.diagonal()
        self.gram, self.apart = between.gram, between.apart
        self.inverse = torch.where(between.apart, 1.0 / between.lengths, 0.0)
        self.narrow_inverse = self.inverse.to(dtype)
        self.shift = 0.5 * own[:, None] - between.gram

    def cosines(self, at: slice, wide: Tensor, out: Tensor) -> Tensor:
        """Write the cosines at some anchors to ``out`` (anchors, batch, batch); ``wide`` is its float64 room."""
        torch.add(self.gram, self.shift[at, :, None], out=wide)
        wide.add_(self.shift[at, None, :])
        out.copy_(wide).mul_(self.narrow_inverse[at, :, None]).mul_(self.narrow_inverse[at, None, :])
        # A direction's cosine with itself is 1, or 0 where there is none.
        out.diagonal(dim1=1, dim2=2).copy_(self.apart[at])
        return out


def _value_and_gradient(
    student: Tensor, teacher: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    between = differences(student)
    ours, theirs = _Side(between, student.dtype), _Side(differences(teacher), student.dtype)
    sums = _GradientSums(between, ours) if with_gradient else None

    batch = len(student)
    anchors = max(1, min(batch, COSINES_AT_ONCE // batch**2))
    room = [student.new_empty(anchors, batch, batch) for _ in range(3)]
    wide = student.new_empty(anchors, batch, batch, dtype=torch.float64)
    total = student.new_zeros((), dtype=torch.float64)
    for start in range(0, batch, anchors):
        at = slice(start, min(start + anchors, batch))
        cosine, error, slope = (buffer[: at.stop - start] for buffer in room)
        theirs.cosines(at, wide[: at.stop - start], error)
        ours.cosines(at, wide[: at.stop - start], cosine)
        torch.sub(cosine, error, out=error)
        # Smooth L1 of x is c (x - c / 2) and its derivative is c, with c = clamp(x, -1, 1).
        torch.clamp(error, -1.0, 1.0, out=slope)
        total += error.add_(slope, alpha=-0.5).mul_(slope).sum().double()
        if sums is not None:
            sums.add(at, cosine, slope, wide[: at.stop - start])
    triples = float(batch) ** 3
    gradient = None if sums is None else (sums.gradient() / triples).to(student.dtype)
    return (total / triples).to(student.dtype), gradient


class _GradientSums:
    """Sums over the triples from which the gradient follows.

    With c_ijk the slope of the loss at a_ijk, q_ijk = r_ij c_ijk r_ik and s_ij = sum_k c_ijk a_ijk, the
    gradient with respect to the difference e_j - e_i is
        t_ij = 2 [sum_k q_ijk (e_k - e_i) - s_ij r_ij^2 (e_j - e_i)],
    added to row j and taken from row i. All of it is one (batch, batch) matrix, with rows that sum to 0,
    times the rows. Close rows e_k and e_i cancel only if every sum holds the very same q: float64 sums.
    """

    def __init__(self, between: Differences, side: _Side) -> None:
        self.between, self.inverse, self.narrow_inverse = between, side.inverse, side.narrow_inverse
        self.share = (between.lengths / SHORTEST_FOR_GRADIENT).clamp(max=1.0)
        self.weight = (self.share * side.inverse).to(side.narrow_inverse.dtype)
        self.over_anchor = torch.zeros_like(between.gram)
        self.over_second, self.over_third = torch.empty_like(between.gram), torch.empty_like(between.gram)
        self.with_cosine = torch.empty_like(self.weight)

    def add(self, at: slice, cosine: Tensor, slope: Tensor, wide: Tensor) -> None:
        """Add the triples of some anchors, (anchors, batch, batch); all three are used up."""
        torch.sum(cosine.mul_(slope), dim=2, out=self.with_cosine[at])
        wide.copy_(slope.mul_(self.narrow_inverse[at, None, :]).mul_(self.weight[at, :, None]))
        torch.sum(wide, dim=2, out=self.over_third[at])
        torch.sum(wide, dim=1, out=self.over_second[at])
        self.over_anchor += wide.sum(dim=0)

    def gradient(self) -> Tensor:
        """Return the gradient of the sum over all triples with respect to the student's rows, float64."""
        pull = self.share * self.inverse.square() * self.with_cosine.double()
        matrix = self.over_anchor - self.over_third.T - self.over_second + pull + pull.T
        matrix -= torch.diag(matrix.sum(dim=1))
        return 2.0 * (matrix @ self.between.rows) / self.between.scale
