"""Neighbours, distances and hubs of embedding spaces, one alone or two of the same clips; angles are cosines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata, skew

from pipeline.errors import OssicleError

BLOCK_ROWS = 1_024
DEBIASED_CLIPS_AT_LEAST = 4
PAIRS = 200_000


@dataclass(frozen=True)
class Hubness:
    """How unevenly clips occur among the nearest of others (Radovanovic et al., JMLR 2010).

    Attributes:
        neighbours: k of the k-occurrence: in how many clips' k nearest a clip is; its mean is k.
        skewness: of the k-occurrences; 0 = even, above about 1 there are hubs.
        orphan_share: share of clips that are nobody's neighbour, 0 to 1.
        largest: the most neighbourhoods that one clip is in.
    """

    neighbours: int
    skewness: float
    orphan_share: float
    largest: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def nearest(
    embedding: Float[np.ndarray, "clips dim"], neighbours: int
) -> Int[np.ndarray, "clips neighbours"]:
    """Return each clip's nearest others by cosine, the nearest first; of equals the earlier clip first.

    Raises:
        OssicleError: not more clips than neighbours.
    """
    clips = len(embedding)
    if clips <= neighbours or neighbours < 1:
        raise OssicleError(
            "too few clips for so many neighbours", expected=f"> {max(neighbours, 1)}", got=clips
        )
    unit = _unit(embedding)
    found = np.empty((clips, neighbours), dtype=np.int64)
    for start in range(0, clips, BLOCK_ROWS):
        similarity = unit[start : start + BLOCK_ROWS] @ unit.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        found[start : start + BLOCK_ROWS] = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
    return found


def overlap_at(
    first: Int[np.ndarray, "clips neighbours"], second: Int[np.ndarray, "clips neighbours"], at: Sequence[int]
) -> dict[int, float]:
    """Return k to the mean share of a clip's k nearest that both spaces agree on, in [0, 1].

    Args:
        first, second: of :func:`nearest`, of the same clips.
        at: every k, none above the number of neighbours.

    Raises:
        OssicleError: different clips, or a k above the neighbours given.
    """
    if first.shape != second.shape or max(at) > first.shape[1]:
        raise OssicleError(
            "the neighbours of two spaces do not fit", expected=f"{first.shape}, k <= {first.shape[1]}",
            got=f"{second.shape}, k = {max(at)}",
        )  # fmt: skip
    # A shared neighbour counts from the later of its two places on.
    common = np.zeros(first.shape[1], dtype=np.int64)
    later = np.maximum.outer(np.arange(first.shape[1]), np.arange(first.shape[1]))
    for start in range(0, len(first), BLOCK_ROWS):
        same = first[start : start + BLOCK_ROWS, :, None] == second[start : start + BLOCK_ROWS, None, :]
        common += np.bincount(later.ravel(), weights=same.sum(axis=0).ravel(), minlength=len(common)).astype(
            np.int64
        )
    upto = np.cumsum(common)
    return {k: float(upto[k - 1] / (k * len(first))) for k in at}


def debiased_cka(a: Float[np.ndarray, "clips dim_a"], b: Float[np.ndarray, "clips dim_b"]) -> float:
    """Return linear CKA from the unbiased HSIC (Song et al., JMLR 2012; Nguyen et al., ICLR 2021).

    Plain CKA rises towards 1 as widths exceed the number of clips, even of noise; this stays about 0 there, and may
    be a little below it. A constant space gives 0.

    Raises:
        OssicleError: different clips, or fewer than 4.
    """
    _same_clips(a, b)
    if len(a) < DEBIASED_CLIPS_AT_LEAST:
        raise OssicleError("too few clips for the unbiased HSIC", expected=">= 4", got=len(a))
    x, y = _centred(a), _centred(b)
    norm = _unbiased_hsic(x, x) * _unbiased_hsic(y, y)
    return _unbiased_hsic(x, y) / norm**0.5 if norm > 0 else 0.0


def distance_correlation(
    a: Float[np.ndarray, "clips dim_a"],
    b: Float[np.ndarray, "clips dim_b"],
    *,
    pairs: int = PAIRS,
    seed: int = 0,
) -> float:
    """Return Spearman's rank correlation of the cosine distances of the same pairs of clips in both spaces.

    All pairs where there are no more than ``pairs``, else as many drawn with ``seed``, each pair at most once.
    NaN where all distances of a space are equal.

    Raises:
        OssicleError: different clips, or fewer than 3.
    """
    _same_clips(a, b)
    clips = len(a)
    if clips < 3:
        raise OssicleError("too few clips for distances to rank", expected=">= 3", got=clips)
    every = clips * (clips - 1) // 2
    if every <= pairs:
        first, second = np.triu_indices(clips, 1)
    else:
        first, second = _drawn_pairs(clips, pairs, seed)
    ranks = []
    for x in (_unit(a), _unit(b)):
        similarity = np.concatenate([
            np.einsum("pd,pd->p", x[first[s : s + BLOCK_ROWS]], x[second[s : s + BLOCK_ROWS]])
            for s in range(0, len(first), BLOCK_ROWS)
        ])  # fmt: skip
        # Rounding must not rank distances that are equal by construction.
        ranks.append(rankdata(-np.round(similarity, 12)))
    if any(rank.std() == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def hubness(near: Int[np.ndarray, "clips neighbours"]) -> Hubness:
    """Return the skewness of the k-occurrences and the share of orphans; ``near`` is of :func:`nearest`."""
    occurrences = np.bincount(near.ravel(), minlength=len(near))
    skewness = float(skew(occurrences)) if occurrences.std() > 0 else 0.0
    return Hubness(near.shape[1], skewness, float((occurrences == 0).mean()), int(occurrences.max()))


def label_agreement(near: Int[np.ndarray, "clips neighbours"], labels: np.ndarray) -> dict[str, float]:
    """Return each class's mean share of neighbours of the same class, 0 to 1, in alphabetical order."""
    same = (labels[near] == labels[:, None]).mean(axis=1)
    return {str(one): float(same[labels == one].mean()) for one in np.unique(labels)}


def _drawn_pairs(clips: int, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``pairs`` different pairs of different clips: pair number ``j (j - 1) / 2 + i`` is (i, j), i < j."""
    drawn = np.random.default_rng(seed).choice(clips * (clips - 1) // 2, size=pairs, replace=False)
    later = ((1.0 + np.sqrt(1.0 + 8.0 * drawn)) / 2.0).astype(np.int64)
    return drawn - later * (later - 1) // 2, later


def _unbiased_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased HSIC of the linear kernels without any (clips, clips) matrix; up to 1 / (n (n - 3))."""
    n = len(x)
    x_square, y_square = (x * x).sum(axis=1), (y * y).sum(axis=1)
    trace = np.square(y.T @ x).sum() - x_square @ y_square
    # Row sums of the kernels without their diagonals.
    x_sum, y_sum = x @ x.sum(axis=0) - x_square, y @ y.sum(axis=0) - y_square
    total = trace + x_sum.sum() * y_sum.sum() / ((n - 1) * (n - 2)) - 2.0 / (n - 2) * (x_sum @ y_sum)
    return float(total)


def _unit(x: np.ndarray) -> np.ndarray:
    wide = np.asarray(x, dtype=np.float64)
    norm = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(norm > 0, norm, 1.0))


def _centred(x: np.ndarray) -> np.ndarray:
    wide = np.asarray(x, dtype=np.float64)
    return np.asarray(wide - wide.mean(axis=0))


def _same_clips(a: np.ndarray, b: np.ndarray) -> None:
    if len(a) != len(b):
        raise OssicleError("the two spaces hold different clips", expected=f"{len(a)} rows", got=len(b))
