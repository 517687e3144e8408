"""Rows scaled to unit length, with a gradient that stays bounded where a row is short or zero."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# A row below this norm has no direction (the eps of torch.nn.functional.normalize).
SMALLEST_NORM = 1e-12
# The gradient of a direction grows as 1 / norm; shorter rows get that of this norm, in units of the
# batch's root-mean-square norm.
SHORTEST_FOR_GRADIENT = 1e-3


def unit_rows(rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    """Return ``rows`` over their norms; a row of norm below 1e-12 becomes 0 and gets no gradient.

    Where a row's norm is below 1e-3 of the batch's root-mean-square norm its gradient is that of a row of
    1e-3. (Dividing by max(norm, 1e-12) has the same values and gradients of 1e8 and more there.)
    """
    norms = torch.linalg.vector_norm(rows.detach(), dim=1, keepdim=True)
    has_direction = ~(norms <= SMALLEST_NORM)
    safe = torch.where(has_direction, rows, torch.ones_like(rows))
    unit: Tensor = safe / torch.linalg.vector_norm(safe, dim=1, keepdim=True) * has_direction
    shortest = (SHORTEST_FOR_GRADIENT * norms.double().square().mean().sqrt()).to(norms.dtype)
    share = torch.where(norms < shortest, norms / shortest, torch.ones_like(norms))
    # The value of the second summand is 0: it only carries the gradient.
    return unit.detach() + share * (unit - unit.detach())
