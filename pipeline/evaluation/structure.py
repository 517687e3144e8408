"""How alike two embedding spaces are, and how many directions one of them uses."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from sklearn.neighbors import NearestNeighbors

from pipeline.errors import OssicleError


def linear_cka(a: Float[np.ndarray, "clips dim_a"], b: Float[np.ndarray, "clips dim_b"]) -> float:
    """Return the linear centred kernel alignment in [0, 1] (Kornblith et al., ICML 2019).

    Invariant to rotation and isotropic scale of either space. A constant space gives 0.

    Raises:
        OssicleError: different numbers of clips.
    """
    _same_clips(a, b)
    x = a.astype(np.float64) - a.mean(axis=0, dtype=np.float64)
    y = b.astype(np.float64) - b.mean(axis=0, dtype=np.float64)
    cross = float(np.square(y.T @ x).sum())
    norm = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return cross / norm if norm > 0 else 0.0


def neighbour_overlap(
    a: Float[np.ndarray, "clips dim_a"], b: Float[np.ndarray, "clips dim_b"], neighbours: int = 10
) -> float:
    """Return the mean share of a clip's ``neighbours`` nearest (cosine) that both spaces agree on, in [0, 1].

    Raises:
        OssicleError: different numbers of clips, or too few for so many neighbours.
    """
    _same_clips(a, b)
    if len(a) <= neighbours:
        raise OssicleError("too few clips for so many neighbours", expected=f"> {neighbours}", got=len(a))
    sets = [_nearest(np.asarray(x, dtype=np.float64), neighbours) for x in (a, b)]
    shared = [len(set(p) & set(q)) for p, q in zip(*sets, strict=True)]
    return float(np.mean(shared)) / neighbours


def effective_rank(a: Float[np.ndarray, "clips dim"]) -> float:
    """Return exp of the entropy of the centred matrix's normalised singular values (Roy and Vetterli, 2007).

    From 1 (a line) to the width; 0 for a constant space.
    """
    singular = np.linalg.svd(a.astype(np.float64) - a.mean(axis=0, dtype=np.float64), compute_uv=False)
    total = singular.sum()
    if total <= 1e-12 * max(1.0, float(np.abs(a).max())):
        return 0.0
    share = singular[singular > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def _nearest(x: np.ndarray, neighbours: int) -> np.ndarray:
    index = NearestNeighbors(n_neighbors=neighbours, metric="cosine", algorithm="brute").fit(x)
    # Without an argument the query leaves each clip itself out.
    found: np.ndarray = index.kneighbors(return_distance=False)
    return found


def _same_clips(a: np.ndarray, b: np.ndarray) -> None:
    if len(a) != len(b):
        raise OssicleError("the two spaces hold different clips", expected=f"{len(a)} rows", got=len(b))
