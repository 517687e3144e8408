"""Neighbour overlap: do two embeddings of the same rows agree on who is near whom?"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

NEIGHBOURS = 10


@torch.no_grad()
def neighbour_overlap(
    first: Float[Tensor, "rows dim_1"], second: Float[Tensor, "rows dim_2"], neighbours: int = NEIGHBOURS
) -> float:
    """Return the mean share of each row's nearest neighbours (cosine, itself excluded) common to both.

    1 = the same neighbours, about ``neighbours / (rows - 1)`` = chance. ``neighbours`` is lowered to
    ``rows - 1`` where there are fewer rows; NaN for fewer than 2 rows.
    """
    rows = len(first)
    k = min(neighbours, rows - 1)
    if k < 1:
        return float("nan")
    nearest = []
    for embedding in (first, second):
        unit = torch.nn.functional.normalize(embedding.float(), dim=1)
        similarity = unit @ unit.T
        similarity.fill_diagonal_(-torch.inf)
        chosen = torch.zeros(rows, rows, dtype=torch.bool, device=unit.device)
        nearest.append(chosen.scatter_(1, similarity.topk(k, dim=1).indices, True))
    return float((nearest[0] & nearest[1]).sum()) / (rows * k)
