"""Collapse: has the student stopped using its dimensions?

Effective rank: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
"""

from __future__ import annotations

import logging

import torch
from jaxtyping import Float
from torch import Tensor

log = logging.getLogger(__name__)

COLLAPSED_SHARE = 0.02
COLLAPSED_RANK = 2.0
# Spread below this share of the embeddings' size is rounding, which would read as full rank.
CONSTANT_TOLERANCE = 1e-5


@torch.no_grad()
def effective_rank(embedding: Float[Tensor, "rows dim"]) -> float:
    """Return exp(entropy of the normalised singular values) of the centred rows.

    Between 1 (all rows on one line) and min(rows - 1, dim); 0 where all rows are the same point.
    """
    matrix = embedding.double()
    centred = matrix - matrix.mean(dim=0)
    if float(centred.norm()) <= CONSTANT_TOLERANCE * float(matrix.norm()):
        return 0.0
    share = torch.linalg.svdvals(centred)
    share = share / share.sum()
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))


def is_collapsed(rank: float, rows: int, dimension: int) -> bool:
    """Whether an effective rank is too low to be a working embedding of ``dimension`` numbers."""
    possible = min(rows - 1, dimension)
    return possible > COLLAPSED_RANK and rank < max(COLLAPSED_RANK, COLLAPSED_SHARE * possible)


def warn_if_collapsed(rank: float, rows: int, dimension: int, where: str) -> bool:
    """Log a warning where ``rank`` means collapse; return whether it does."""
    collapsed = is_collapsed(rank, rows, dimension)
    if collapsed:
        log.warning(
            "%s: the student's embeddings have collapsed: effective rank %.1f of %d dimensions over %d rows; "
            "lower train.learning_rate or raise loss.feature", where, rank, dimension, rows,
        )  # fmt: skip
    return collapsed
