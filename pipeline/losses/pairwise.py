"""Differences between the rows of a batch, by their Gram matrix: O(batch^2) memory whatever the width.

|e_i - e_j|^2 = G_ii + G_jj - 2 G_ij loses half of its digits where two rows are close, so that the rows are
centred and the Gram matrix (only batch x batch) is made in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# float32 resolves about 1e-7 of a row's norm: a shorter difference than this share of it is rounding noise.
COINCIDENT_SHARE = 1e-6


@dataclass(frozen=True)
class Differences:
    """The rows of a batch and what is between them, in units of the rows' root-mean-square norm.

    Attributes:
        rows: centred rows over ``scale``, float64.
        gram: ``rows @ rows.T``.
        lengths: |rows_i - rows_j|; 0 where ``apart`` is false. Its gradient is a unit vector or 0.
        apart: false on the diagonal and for rows that coincide: closer than 1e-6 of their own norms.
        scale: the root-mean-square norm of the centred rows (1 if that is 0), detached.
    """

    rows: Float[Tensor, "batch dim"]
    gram: Float[Tensor, "batch batch"]
    lengths: Float[Tensor, "batch batch"]
    apart: Bool[Tensor, "batch batch"]
    scale: Float[Tensor, ""]


def differences(rows: Float[Tensor, "batch dim"]) -> Differences:
    """Return the differences between the rows.

    Dividing by a detached scale is exact for what comes after only if that does not depend on scale, as the
    distance-wise and the angle-wise loss do not.
    """
    with torch.autocast(rows.device.type, enabled=False):
        wide = rows.double()
        norms = wide.detach().square().sum(dim=1)
        centred = wide - wide.mean(dim=0)
        scale = centred.detach().square().sum(dim=1).mean().sqrt()
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        centred = centred / scale
        gram = centred @ centred.T
        own = gram.diagonal()
        squared = own[:, None] + own[None, :] - 2.0 * gram
        noise = COINCIDENT_SHARE**2 * (norms[:, None] + norms[None, :] + norms.mean()) / scale**2
        # "not <=" and not ">": a NaN row must stay in and make the loss NaN.
        apart = ~(squared.detach() <= noise)
        apart = apart.fill_diagonal_(False)
        lengths = torch.where(apart, squared, torch.ones_like(squared)).sqrt() * apart
    return Differences(centred, gram, lengths, apart, scale)


def spread_rows(rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    """Return the centred rows over their root-mean-square norm, float64; 0 where all rows coincide.

    The norm counts as a constant, which is exact for what comes after only if that does not depend on scale.
    """
    wide = rows.double()
    centred = wide - wide.mean(dim=0)
    scale = centred.detach().square().sum(dim=1).mean().sqrt()
    # A shorter spread than this is rounding noise, which must not be blown up to unit size.
    coincide = scale <= COINCIDENT_SHARE * wide.detach().square().sum(dim=1).mean().sqrt()
    return torch.where(coincide, 0.0, 1.0 / torch.where(coincide, torch.ones_like(scale), scale)) * centred
