"""How much of the float file's geometry a quantised file keeps: cosine, neighbours and a probe's score."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from pipeline.deploy.calibration import BATCH_ROWS, LabelledRows
from pipeline.deploy.parity import centred_cosine
from pipeline.deploy.sessions import open_session, run_session
from pipeline.neighbours import NEIGHBOURS, neighbour_overlap

FOLDS = 4
RIDGE_ALPHA = 1.0


@dataclass(frozen=True)
class Fidelity:
    """A file against the float file on the same rows.

    Attributes:
        centred_cosine: mean cosine after the float mean embedding is taken off both.
        neighbour_overlap: share of each row's 10 nearest (cosine) that both agree on.
        probe_score: accuracy of a linear probe trained and tested on this file's embeddings; None without classes.
    """

    centred_cosine: float
    neighbour_overlap: float
    probe_score: float | None = None

    def as_json(self) -> dict[str, float | None]:
        """Return plain values."""
        return asdict(self)


class Judge:
    """Compares files with one float file.

    Args:
        fp32: the float file.
        log_mels: (rows, 1, mels, frames) that cosine and neighbours are measured on.
        labelled: rows for the probe; None, or too few of each class = no probe.

    Attributes:
        reference: the float file's embeddings (rows, dim).
        probe_score: the float file's own, or None.
    """

    def __init__(
        self,
        fp32: Path,
        log_mels: Float[np.ndarray, "rows 1 mels frames"],
        labelled: LabelledRows | None = None,
    ) -> None:
        self._log_mels = log_mels
        self._labelled = _probeable(labelled)
        self.reference = embed_rows(fp32, log_mels)
        self.probe_score = self._probe(fp32)

    def fidelity(self, path: Path) -> Fidelity:
        """Return how close the file at ``path`` comes."""
        got = embed_rows(path, self._log_mels)
        return Fidelity(centred_cosine(got, self.reference), overlap(got, self.reference), self._probe(path))

    def _probe(self, path: Path) -> float | None:
        if self._labelled is None:
            return None
        embeddings = embed_rows(path, self._labelled.log_mels)
        return probe_score(embeddings, self._labelled.labels, self._labelled.groups)


def embed_rows(
    path: Path, log_mels: Float[np.ndarray, "rows 1 mels frames"]
) -> Float[np.ndarray, "rows dim"]:
    """Return the embeddings that an exported file gives for ``log_mels``."""
    session = open_session(path)
    batches = [
        run_session(session, log_mels[i : i + BATCH_ROWS]) for i in range(0, len(log_mels), BATCH_ROWS)
    ]
    return np.concatenate(batches)


def overlap(
    got: Float[np.ndarray, "rows dim"], want: Float[np.ndarray, "rows dim"], neighbours: int = NEIGHBOURS
) -> float:
    """Return ``pipeline.neighbours.neighbour_overlap`` of two arrays."""
    return neighbour_overlap(torch.from_numpy(got), torch.from_numpy(want), neighbours)


def probe_score(embeddings: Float[np.ndarray, "rows dim"], labels: np.ndarray, groups: np.ndarray) -> float:
    """Return the accuracy of a ridge classifier over standardised embeddings, cross-validated over groups."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    probe = make_pipeline(StandardScaler(), RidgeClassifier(RIDGE_ALPHA))
    with warnings.catch_warnings():
        # A class whose clips are few may miss in a fold; it is the same fold for both files.
        warnings.simplefilter("ignore", UserWarning)
        scores = cross_val_score(probe, embeddings.astype(np.float64), labels, groups=groups, cv=folds)
    return float(scores.mean())


def _probeable(rows: LabelledRows | None) -> LabelledRows | None:
    """Return the rows of the classes that every fold can hold; None if fewer than two classes are left."""
    if rows is None:
        return None
    clips = {label: len(set(rows.groups[rows.labels == label])) for label in np.unique(rows.labels)}
    kept = np.array([clips[label] >= FOLDS for label in rows.labels])
    if len(np.unique(rows.labels[kept])) < 2:
        return None
    return LabelledRows(rows.log_mels[kept], rows.labels[kept], rows.groups[kept])
