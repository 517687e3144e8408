"""Whether a probe's confidence is the share of its answers that are right (Guo et al., ICML 2017)."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pipeline.errors import OssicleError

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """How far confidence and accuracy are apart.

    Attributes:
        expected_calibration_error: mean of ``|accuracy - confidence|`` over the bins, weighted by clips; 0 is best.
        brier: mean over clips of the squared distance of the probabilities and the one-hot truth, 0 to 2 (Brier,
            1950).
        confidence, accuracy: of each bin: the points of the reliability curve.
        clips: of each bin.
    """

    expected_calibration_error: float
    brier: float
    confidence: list[float]
    accuracy: list[float]
    clips: list[int]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def calibration(
    probabilities: Float[np.ndarray, "clips classes"], truth: Int[np.ndarray, " clips"], bins: int = BINS
) -> Calibration:
    """Return the calibration of out-of-fold probabilities, in bins of equal mass (Nixon et al., 2019).

    Clips of equal confidence (a k-NN's votes) stay in one bin, so that there may be fewer bins than asked for and
    the order of the clips does not matter.

    Args:
        probabilities: of each class, rows that sum to 1.
        truth: each clip's class, a column of ``probabilities``.
        bins: at most.

    Raises:
        OssicleError: no clips, or rows that are no probabilities.
    """
    if not len(truth) or len(truth) != len(probabilities):
        raise OssicleError("calibration needs clips", expected=f"{len(probabilities)} labels", got=len(truth))
    if (probabilities < 0).any() or not np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-4):
        raise OssicleError("rows are no probabilities", expected="0 or more, in sum 1")
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth
    edges = equal_mass_edges(np.sort(confidence), bins)
    order = np.argsort(confidence, kind="stable")
    parts = [order[start:stop] for start, stop in itertools.pairwise(edges)]
    sure = [float(confidence[part].mean()) for part in parts]
    share = [float(right[part].mean()) for part in parts]
    error = sum(len(part) * abs(a - c) for part, a, c in zip(parts, share, sure, strict=True)) / len(truth)
    one_hot = np.zeros_like(probabilities)
    one_hot[np.arange(len(truth)), truth] = 1.0
    brier = float(np.square(probabilities - one_hot).sum(axis=1).mean())
    return Calibration(float(error), brier, sure, share, [len(part) for part in parts])


def equal_mass_edges(ordered: Float[np.ndarray, " clips"], bins: int) -> list[int]:
    """Return where bins of about equal mass begin, and the end; an edge inside a run of equals moves to its end."""
    edges = [0]
    for part in range(1, bins):
        place = round(part * len(ordered) / bins)
        if place <= 0 or place >= len(ordered):
            continue
        place = int(np.searchsorted(ordered, ordered[place - 1], side="right"))
        if edges[-1] < place < len(ordered):
            edges.append(place)
    return [*edges, len(ordered)]
