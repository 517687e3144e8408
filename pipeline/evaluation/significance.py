"""Is a difference more than chance, when many are looked at?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def p_value(differences: Float[np.ndarray, " resamples"]) -> float:
    """Return the two-sided bootstrap p-value of paired differences: is 0 among what the draws give?

    ``2 min((1 + #{d <= 0}) / (1 + B), (1 + #{d >= 0}) / (1 + B))``, at most 1 (Davison and Hinkley, 1997, section
    4.2): never below ``2 / (1 + B)``, so that a small one needs many resamples. NaN without draws.
    """
    known = differences[~np.isnan(differences)]
    if not len(known):
        return float("nan")
    tails = [(1 + (known <= 0).sum()) / (1 + len(known)), (1 + (known >= 0).sum()) / (1 + len(known))]
    return float(min(1.0, 2.0 * min(tails)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, 1979): reject where it is below the level wanted.

    The chance of one false difference among all is then at most that level, whatever depends on what. NaN stays NaN
    and is not counted.
    """
    given = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(len(given), np.nan)
    known = np.flatnonzero(~np.isnan(given))
    order = known[np.argsort(given[known], kind="stable")]
    steps = given[order] * (len(order) - np.arange(len(order)))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in corrected]


def ratio_interval(
    ours: Float[np.ndarray, " resamples"], theirs: Float[np.ndarray, " resamples"], level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of ``ours / theirs`` on the same draws; NaN where no draw has theirs above 0."""
    usable = theirs > 0
    if not usable.any():
        return float("nan"), float("nan")
    low, high = np.nanquantile(ours[usable] / theirs[usable], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
