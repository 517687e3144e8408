"""When a sound is of no known class: a threshold on the best score, chosen on clips that taught nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import roc_auc_score

KEPT_SHARE = 0.95


@dataclass(frozen=True)
class Rejection:
    """A threshold and what it does on the validation clips.

    Attributes:
        threshold: a best score below it means no known class.
        rule: how it was chosen.
        known_kept: share of clips of known classes that it lets through.
        unknown_rejected: share of clips of unknown classes that it stops; NaN where there were none.
        auroc: area under the curve of the best score, known against unknown; NaN likewise.
    """

    threshold: float
    rule: str
    known_kept: float
    unknown_rejected: float
    auroc: float

    def as_json(self) -> dict[str, Any]:
        """Return plain values, None for what is not known."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


def choose(known: Float[np.ndarray, " known"], unknown: Float[np.ndarray, " unknown"]) -> Rejection:
    """Return the threshold where the shares of known kept and unknown stopped have the highest mean.

    Without unknown clips it is the score that 95 % of the known clips reach.

    Args:
        known: best scores of validation clips of classes in the bank.
        unknown: best scores of validation clips of classes that are not in it.
    """
    if not len(unknown):
        threshold = float(np.quantile(known, 1.0 - KEPT_SHARE))
        rule = f"{KEPT_SHARE:.0%} of the known clips reach it"
        return Rejection(threshold, rule, float((known >= threshold).mean()), float("nan"), float("nan"))
    scores = np.unique(np.concatenate([known, unknown]))
    # Between neighbouring scores, so that rounding on another machine moves no clip across.
    cuts = np.concatenate([[scores[0]], (scores[1:] + scores[:-1]) / 2.0])
    kept = 1.0 - np.searchsorted(np.sort(known), cuts, side="left") / len(known)
    stopped = np.searchsorted(np.sort(unknown), cuts, side="left") / len(unknown)
    best = int(np.argmax(kept + stopped))
    truth = np.concatenate([np.ones(len(known)), np.zeros(len(unknown))])
    auroc = float(roc_auc_score(truth, np.concatenate([known, unknown])))
    rule = "highest mean of known kept and unknown rejected, each class in turn left out of the bank"
    return Rejection(float(cuts[best]), rule, float(kept[best]), float(stopped[best]), auroc)


def left_out_scores(
    scores: Callable[[np.ndarray], Float[np.ndarray, " clips"]],
    classes: Int[np.ndarray, " clips"],
    known_classes: int,
) -> tuple[Float[np.ndarray, " known"], Float[np.ndarray, " unknown"]]:
    """Return best scores of clips with their class in the bank, and of the same clips without it.

    Args:
        scores: from the classes that are in the bank, as a mask, to each clip's best score among them.
        classes: of each clip.
        known_classes: how many classes the bank has; of fewer than three nothing is left out.
    """
    everyone = np.ones(known_classes, dtype=bool)
    known = scores(everyone)
    if known_classes < 3:
        return known, np.zeros(0)
    unknown = np.zeros(len(classes))
    for one in range(known_classes):
        mask = everyone.copy()
        mask[one] = False
        unknown[classes == one] = scores(mask)[classes == one]
    return known, unknown
