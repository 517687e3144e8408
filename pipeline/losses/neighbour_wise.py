"""Neighbour-wise loss: a row's nearest neighbours in the teacher's space are drawn near in the student's.

Neighbourhood components (Goldberger, Roweis, Hinton and Salakhutdinov, NIPS 2004) and the soft nearest neighbour
loss (Frosst, Papernot and Hinton, ICML 2019), with the teacher's neighbours in place of rows of one class.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.losses.direction import unit_rows


def neighbour_wise(
    student: Float[Tensor, "batch dim"],
    candidates: Float[Tensor, "all dim"],
    near: Bool[Tensor, "batch all"],
    left_out: Bool[Tensor, "batch all"],
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Return the mean over rows of -log of the share that neighbours have of the softmax over candidates.

    p_ij = exp(cos(e_i, c_j) / T) / sum over j not left out; the loss of row i is -log(sum over near j of p_ij).
    Rows without a neighbour among the candidates have no loss; without any such row it is 0.

    Aligned: who is near whom, and nothing else of the teacher. Invariant to a rotation and to the length of
    rows. Computed in float32 or better, autocast or not; always finite.

    Args:
        student: the batch's rows.
        candidates: the rows that may be neighbours; the batch's own with gradient, remembered ones without.
        near: which candidates are a row's neighbours in the teacher's space.
        left_out: which candidates are the row itself, and so count neither way.
        temperature: T.

    Raises:
        ConfigError: shapes that do not belong together.
    """
    if near.shape != (len(student), len(candidates)) or left_out.shape != near.shape:
        raise ConfigError(
            "neighbours are marked for each row and each candidate",
            expected=(len(student), len(candidates)), got=(tuple(near.shape), tuple(left_out.shape)),
        )  # fmt: skip
    near = near & ~left_out
    has_any = near.any(dim=1)
    if not bool(has_any.any()):
        return student.float().sum() * 0.0
    with torch.autocast(student.device.type, enabled=False):
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        cosines = unit_rows(student.to(dtype)) @ unit_rows(candidates.to(dtype)).T / temperature
        # Rows without a neighbour leave before the logarithm: masked afterwards, their gradient would be NaN.
        cosines = cosines.masked_fill(left_out, -torch.inf)[has_any]
        of_near = cosines.masked_fill(~near[has_any], -torch.inf)
        return (torch.logsumexp(cosines, dim=1) - torch.logsumexp(of_near, dim=1)).mean()
