"""Successive halving on a Pareto front: which candidates go on from a rung."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from pipeline.search.pareto import best_first, front_ranks


def rung_steps(steps: int, rungs: int, reduction: int) -> list[int]:
    """Return the steps at which a candidate is judged: the last is ``steps``, each earlier one a share of it.

    ``steps / reduction^k`` rounded to a multiple of the first, so that one interval of validation meets all.
    """
    first = max(1, steps // reduction ** (rungs - 1))
    inner = {max(1, round(steps / reduction**k / first)) * first for k in range(rungs - 1, 0, -1)}
    return [*sorted(step for step in inner if step < steps), steps]


def goes_on(mine: int, points: Float[np.ndarray, "candidates objectives"], reduction: int) -> bool:
    """Whether candidate ``mine`` goes on from a rung that ``points`` have reached (small is good, mine among them).

    Asynchronous successive halving (Li et al., ASHA, MLSys 2020) lets the best ``1 / reduction`` of those that
    have reached a rung go on; with several objectives "best" is by non-dominated fronts, then by crowding
    (Schmucker et al., MO-ASHA, 2021). What no other dominates always goes on: it may become the answer.
    """
    if front_ranks(points)[mine] == 0:
        return True
    place = int(np.flatnonzero(best_first(points) == mine)[0])
    return place < math.ceil(len(points) / reduction)
