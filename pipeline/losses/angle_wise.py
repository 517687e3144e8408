"""Angle-wise loss: the angles between the rows of the student's batch follow those of the teacher's.

Relational Knowledge Distillation (RKD-A), Park, Kim, Lu and Cho, CVPR 2019. The published formula holds
batch x batch x dim differences and several batch^3 matrices at once; here value and gradient are exact in
O(batch^2) memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
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
# Cosines held at once. On a CPU they should stay in the cache of a core, and from 2^15 on torch splits every
# small step over its threads, which on a busy machine wait for each other far longer than they work; an
# accelerator wants few large steps.
COSINES_AT_ONCE = 2**15 - 1
COSINES_AT_ONCE_ON_ACCELERATOR = 2**23


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


@dataclass(frozen=True)
class _Tile:
    """The triples of all anchors i with j in rows, k in columns.

    With ``mirrored``, those with k beyond the rows stand for (i, k, j) too.
    """

    rows: slice
    columns: slice
    mirrored: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def beyond(self) -> slice:
        """The mirrored columns, counted from the first row."""
        return slice(self.shape[0], None)


def _tiles(batch: int, at_once: int, by_symmetry: bool) -> Iterator[_Tile]:
    """Yield tiles of at most ``at_once`` pairs (j, k); by symmetry, only those with k from j's tile on."""
    first = 0
    while first < batch:
        left = first if by_symmetry else 0
        last = min(batch, first + max(1, at_once // (batch - left)))
        yield _Tile(slice(first, last), slice(left, batch), by_symmetry)
        first = last


class _Side:
    """One side's cosines: r_j r_k (G_jk + b_j + b_k), with r row i of 1 / length and b row i of ``shift``.

    Close rows cancel in the bracket, and r is large there: the sum is made in float64.
    """

    def __init__(self, between: Differences, dtype: torch.dtype) -> None:
        own = between.gram.diagonal()
        self.gram, self.apart = between.gram, between.apart
        self.shift = 0.5 * own[:, None] - between.gram
        self.inverse = torch.where(between.apart, 1.0 / between.lengths, 0.0)
        self.narrow_inverse = self.inverse.to(dtype)

    def pieces(self, tile: _Tile, anchors: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield what the cosines of a tile need, some anchors at a time."""
        rows, columns = tile.rows, tile.columns
        yield from zip(
            self.shift[:, rows, None].split(anchors),
            self.shift[:, None, columns].split(anchors),
            self.narrow_inverse[:, rows, None].split(anchors),
            self.narrow_inverse[:, None, columns].split(anchors),
            self.apart[:, rows].split(anchors),
            itertools.repeat(self.gram[rows, columns]),
            strict=False,
        )


def _cosines(piece: tuple[Tensor, ...], tile: _Tile, wide: Tensor, out: Tensor) -> None:
    """Write the cosines of one piece of a tile to ``out`` (anchors, rows, columns) by way of ``wide``."""
    shift_j, shift_k, inverse_j, inverse_k, apart, gram = piece
    torch.add(gram, shift_j, out=wide)
    out.copy_(wide.add_(shift_k)).mul_(inverse_j).mul_(inverse_k)
    # A direction's cosine with itself is 1, or 0 where there is none.
    out.diagonal(offset=tile.rows.start - tile.columns.start, dim1=1, dim2=2).copy_(apart)


def _value_and_gradient(
    student: Tensor, teacher: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    between = differences(student)
    ours, theirs = _Side(between, student.dtype), _Side(differences(teacher), student.dtype)
    sums = _GradientSums(between, ours) if with_gradient else None

    batch = len(student)
    at_once = COSINES_AT_ONCE if student.device.type == "cpu" else COSINES_AT_ONCE_ON_ACCELERATOR
    by_symmetry = batch**2 > at_once and (sums is None or sums.is_symmetric)
    anchors = max(1, at_once // batch**2)
    total = student.new_zeros((), dtype=torch.float64)
    for tile in _tiles(batch, at_once, by_symmetry):
        room = [student.new_empty(anchors, *tile.shape) for _ in range(3)]
        room.append(student.new_empty(anchors, *tile.shape, dtype=torch.float64))
        into = itertools.repeat(()) if sums is None else sums.pieces(tile, anchors)
        for own, other, sinks in zip(
            ours.pieces(tile, anchors), theirs.pieces(tile, anchors), into, strict=False
        ):
            cosine, error, slope, wide = (buffer[: len(own[0])] for buffer in room)
            _cosines(other, tile, wide, error)
            _cosines(own, tile, wide, cosine)
            torch.sub(cosine, error, out=error)
            # Smooth L1 of x is c (x - c / 2) and its derivative is c, with c = clamp(x, -1, 1).
            torch.clamp(error, -1.0, 1.0, out=slope)
            error.add_(slope, alpha=-0.5).mul_(slope)
            total += error.sum()
            if tile.mirrored:
                total += error[:, :, tile.beyond].sum()
            if sinks:
                _add_to_sums(sinks, tile, cosine, slope, wide)
    triples = batch**3
    gradient = None if sums is None else (sums.gradient(by_symmetry) / triples).to(student.dtype)
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
        share = (between.lengths / SHORTEST_FOR_GRADIENT).clamp(max=1.0)
        # Where there is no difference the inverse length is 0 already.
        self.share = torch.where(between.apart, share, 1.0)
        self.weight = (self.share * side.inverse).to(side.narrow_inverse.dtype)
        self.over_anchor, self.over_second, self.over_third = (torch.zeros_like(share) for _ in range(3))
        self.with_cosine = torch.zeros_like(self.weight)

    @property
    def is_symmetric(self) -> bool:
        """Whether q_ijk = q_ikj: no difference is so short that its gradient is capped."""
        return bool((self.share == 1.0).all())

    def pieces(self, tile: _Tile, anchors: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the factors of q and where the sums of a tile go, some anchors at a time."""
        rows, columns = tile.rows, tile.columns
        # A mirrored tile's sums over j are its mirror image's sums over k.
        over_j, beyond = (
            (self.over_third, slice(rows.stop, None)) if tile.mirrored else (self.over_second, columns)
        )
        yield from zip(
            self.weight[:, rows, None].split(anchors),
            self.narrow_inverse[:, None, columns].split(anchors),
            self.with_cosine[:, rows].split(anchors),
            self.with_cosine[:, slice(rows.stop, None)].split(anchors),
            self.over_third[:, rows].split(anchors),
            over_j[:, beyond].split(anchors),
            itertools.repeat(self.over_anchor[rows, columns]),
            strict=False,
        )

    def gradient(self, by_symmetry: bool) -> Tensor:
        """Return the gradient of the sum over all triples with respect to the student's rows, float64."""
        over_anchor, over_second = self.over_anchor, self.over_second
        if by_symmetry:
            over_anchor = over_anchor.triu() + over_anchor.triu(1).T
            over_second = self.over_third
        pull = self.share * self.inverse.square() * self.with_cosine.double()
        matrix = over_anchor - self.over_third.T - over_second + pull + pull.T
        matrix -= torch.diag(matrix.sum(dim=1))
        return 2.0 * (matrix @ self.between.rows) / self.between.scale


def _add_to_sums(sinks: tuple[Tensor, ...], tile: _Tile, cosine: Tensor, slope: Tensor, wide: Tensor) -> None:
    """Add one piece of a tile to the sums; its cosines and slopes (anchors, rows, columns) are used up."""
    weight_j, inverse_k, with_cosine, with_cosine_beyond, over_k, over_j, over_anchor = sinks
    with_cosine += cosine.mul_(slope).sum(dim=2)
    wide.copy_(slope.mul_(inverse_k).mul_(weight_j))
    over_k += wide.sum(dim=2)
    over_anchor += wide[0] if len(wide) == 1 else wide.sum(dim=0)
    if tile.mirrored:
        with_cosine_beyond += cosine[:, :, tile.beyond].sum(dim=1)
        over_j += wide[:, :, tile.beyond].sum(dim=1)
    else:
        over_j += wide.sum(dim=1)
