"""Angle-wise loss over sampled triplets: an unbiased estimate of the loss over all of them.

RKD-A, Park, Kim, Lu and Cho, CVPR 2019. At batch 1,024 there are 10^9 triplets; a million drawn anew each step
cost a thousandth.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.errors import ConfigError
from pipeline.losses.angle_wise import SHORTEST_FOR_GRADIENT
from pipeline.losses.inputs import working
from pipeline.losses.pairwise import Differences, differences

# Drawn and compared at once; about 30 MB.
TRIPLETS_AT_ONCE = 2**18


def sampled_angle_wise(
    student: Float[Tensor, "batch student_dim"],
    teacher: Float[Tensor, "batch teacher_dim"],
    triplets: int,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Return an estimate of ``angle_wise`` from ``triplets`` triples of three different rows.

    The triples are drawn uniformly, with replacement. Those with a row twice need no drawing: their difference is
    0, but where rows coincide on one side alone, which is counted exactly. So the expected value and the expected
    gradient are those of ``angle_wise``, as are invariances, precision and what happens on degenerate input.
    Memory O(batch^2 + 2^18); time O(batch^2 dim + triplets). Bit-equal again on a CPU; a GPU adds the gradient up
    in any order. Once differentiable.

    Args:
        student: the student's rows.
        teacher: the teacher's rows.
        triplets: how many to draw.
        generator: on the CPU; its state says which are drawn.

    Raises:
        ConfigError: unequal numbers of rows or none, or fewer than one triplet.

    Example:
        >>> sampled_angle_wise(torch.randn(1024, 128), torch.randn(1024, 768), 10**6, torch.Generator())
    """
    if triplets < 1:
        raise ConfigError("nothing to compare", expected="at least one triplet", got=triplets)
    student, teacher = working(student, teacher)
    with_gradient = torch.is_grad_enabled() and student.requires_grad
    loss: Tensor = _SampledAngleWise.apply(student, teacher, triplets, generator, with_gradient)
    return loss


class _SampledAngleWise(torch.autograd.Function):
    """Makes the gradient together with the value, as the exact loss does."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        triplets: int,
        generator: torch.Generator,
        with_gradient: bool,
    ) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            value, gradient = _value_and_gradient(student, teacher, triplets, generator, with_gradient)
        ctx.save_for_backward(*(() if gradient is None else (gradient,)))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None, None, None


class _Side:
    """One side's cosines at triples: r_ij r_ik (G_jk + b_ij + b_ik), r 1 / length and b_ij = G_ii / 2 - G_ij."""

    def __init__(self, between: Differences) -> None:
        self.gram = between.gram.flatten()
        self.shift = (0.5 * between.gram.diagonal()[:, None] - between.gram).flatten()
        self.inverse = torch.where(between.apart, 1.0 / between.lengths, 0.0).flatten()

    def cosines(self, ij: Tensor, ik: Tensor, jk: Tensor) -> Tensor:
        inner = self.gram[jk] + self.shift[ij] + self.shift[ik]
        return inner * self.inverse[ij] * self.inverse[ik]


def _value_and_gradient(
    student: Tensor, teacher: Tensor, triplets: int, generator: torch.Generator, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    between, other = differences(student), differences(teacher)
    ours, theirs = _Side(between), _Side(other)
    batch = len(student)
    # Where rows coincide on one side alone, a_ijj is 1 on the other: smooth L1 of 1 is a half.
    total = 0.5 * (between.apart != other.apart).sum().double() / batch**3
    sums = student.new_zeros(batch**2, dtype=torch.float64)
    share = torch.where(
        between.apart, (between.lengths / SHORTEST_FOR_GRADIENT).clamp(max=1.0), 1.0
    ).flatten()
    weight = (batch - 1) * (batch - 2) / batch**2 / triplets
    left = triplets if batch >= 3 else 0
    while left > 0:
        first, second, third = (
            rows.to(student.device) for rows in _drawn(min(left, TRIPLETS_AT_ONCE), batch, generator)
        )
        left -= len(first)
        ij, ik, jk = first * batch + second, first * batch + third, second * batch + third
        cosine = ours.cosines(ij, ik, jk)
        difference = cosine - theirs.cosines(ij, ik, jk)
        # Smooth L1 of x is c (x - c / 2) and its derivative is c, with c = clamp(x, -1, 1).
        slope = difference.clamp(-1.0, 1.0)
        total = total + weight * (slope * (difference - 0.5 * slope)).sum()
        if with_gradient:
            inverse_j, inverse_k = ours.inverse[ij], ours.inverse[ik]
            cross = slope * inverse_j * inverse_k
            pull = slope * cosine
            for near, far, inverse, near_far in (
                (second, third, inverse_j, jk),
                (third, second, inverse_k, third * batch + second),
            ):
                # Of e_near - e_first: share [cross (e_far - e_first) - pull / length^2 (e_near - e_first)], added to
                # row near and taken from row first. The diagonal follows, for rows of coefficients sum to 0.
                out = share[first * batch + near]
                across, back = out * cross, out * pull * inverse.square()
                sums.index_add_(0, near_far, across)
                sums.index_add_(0, near * batch + first, back - across)
                sums.index_add_(0, first * batch + far, -across)
                sums.index_add_(0, first * batch + near, back)
    # A NaN row must not leave with the sample: all rows are in the sum.
    value = (total + 0.0 * (between.gram.sum() + other.gram.sum())).to(student.dtype)
    if not with_gradient:
        return value, None
    matrix = sums.view(batch, batch)
    matrix -= torch.diag(matrix.sum(dim=1))
    return value, (weight * (matrix @ between.rows) / between.scale).to(student.dtype)


def _drawn(count: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw triples of different rows: the second skips the first, the third skips both."""
    first = torch.randint(batch, (count,), generator=generator)
    second = torch.randint(batch - 1, (count,), generator=generator)
    second += second >= first
    third = torch.randint(batch - 2, (count,), generator=generator)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    third += third >= low
    third += third >= high
    return first, second, third
