"""Pareto sets: who is dominated by nobody, in which order, and how much of the space a set covers."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

Points = Float[np.ndarray, "points objectives"]


def non_dominated(points: Points) -> Bool[np.ndarray, " points"]:
    """Return which points no other point dominates; every objective is to be small.

    A point dominates another if it is no larger anywhere and smaller somewhere. Equal points do not dominate
    each other, so that both stay.
    """
    no_larger = (points[:, None, :] <= points[None, :, :]).all(axis=2)
    smaller = (points[:, None, :] < points[None, :, :]).any(axis=2)
    free: Bool[np.ndarray, " points"] = np.logical_not((no_larger & smaller).any(axis=0))
    return free


def front_ranks(points: Points) -> Int[np.ndarray, " points"]:
    """Return the front of each point: 0 = non-dominated, 1 = so among the rest, ... (Deb et al., NSGA-II, 2002)."""
    ranks = np.full(len(points), -1, dtype=np.int64)
    rank = 0
    while (ranks < 0).any():
        left = np.flatnonzero(ranks < 0)
        ranks[left[non_dominated(points[left])]] = rank
        rank += 1
    return ranks


def crowding(points: Points) -> Float[np.ndarray, " points"]:
    """Return the crowding distance of each point among all: the ends infinite, lonely points larger.

    Each objective adds the distance between a point's two neighbours in it, as a share of its range
    (Deb et al., NSGA-II, 2002).
    """
    distance = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]] if len(order) else 0.0
        distance[order[[0, -1]]] = np.inf
        if span > 0 and len(order) > 2:
            distance[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
    return distance


def best_first(points: Points) -> Int[np.ndarray, " points"]:
    """Return the points' indices: front by front, in each the loneliest first, then as given."""
    ranks = front_ranks(points)
    lonely = np.zeros(len(points))
    for rank in range(int(ranks.max(initial=-1)) + 1):
        inside = ranks == rank
        lonely[inside] = crowding(points[inside])
    return np.lexsort((np.arange(len(points)), -lonely, ranks))


def hypervolume(points: Points, reference: Float[np.ndarray, " objectives"]) -> float:
    """Return the volume that the points dominate below ``reference`` (Zitzler and Thiele, 1998).

    Every objective is to be small; points that are not below the reference everywhere add nothing. Exact, by
    slicing along the last objective (While et al., HSO, 2006): for sets of hundreds, not of thousands.
    """
    inside = points[(points < reference).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    if points.shape[1] == 1:
        return float(reference[0] - inside.min())
    inside = np.unique(inside[non_dominated(inside)], axis=0)
    inside = inside[np.argsort(inside[:, -1], kind="stable")]
    ends = np.append(inside[1:, -1], reference[-1])
    return sum(
        float(end - point[-1]) * hypervolume(inside[: index + 1, :-1], reference[:-1])
        for index, (point, end) in enumerate(zip(inside, ends, strict=True))
        if end > point[-1]
    )
