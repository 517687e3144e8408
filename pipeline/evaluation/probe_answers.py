"""Out-of-fold answers of probes with their probabilities, kept on disk by content: no probe is fitted twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from pipeline import config
from pipeline.evaluation import npz_cache, probes
from pipeline.evaluation.probes import KNN, LINEAR, ProbeAnswers, ProbeSettings

CODE_VERSION = "probe_answers/1"
FOLDER = "probe_answers"


def answers(
    probe: str,
    embedding: Float[np.ndarray, "clips dim"],
    labels: np.ndarray,
    folds: Int[np.ndarray, " clips"],
    settings: ProbeSettings,
    cache: Path | None = None,
) -> ProbeAnswers:
    """Return the out-of-fold answers of ``probe``; those of the same digest in ``cache`` are read, not fitted again.

    The digest is of the embedding's bytes, labels, folds, probe and its settings. One file each:
    ``<cache>/<digest>.npz``.

    Args:
        probe: ``knn`` or ``linear``.
        embedding: frozen clip vectors.
        labels: (clips,) true labels.
        folds: fold of each clip.
        settings: of the probes.
        cache: folder of earlier answers; None = none.

    Raises:
        OssicleError: an embedding is not finite, there are fewer training clips than neighbours, or logistic
            regression does not converge.
    """

    def fit() -> ProbeAnswers:
        return probes.out_of_fold(probe, embedding, labels, folds, settings)

    if cache is None:
        return fit()
    digest = answers_digest(probe, embedding, labels, folds, settings)
    return npz_cache.read_or_make(cache, digest, fit, _pack, _unpack)


def answers_digest(
    probe: str,
    embedding: Float[np.ndarray, "clips dim"],
    labels: np.ndarray,
    folds: np.ndarray,
    settings: ProbeSettings,
) -> str:
    """Return the digest of everything that the answers depend on."""
    rows = np.ascontiguousarray(embedding)
    return config.digest(
        {
            "code": CODE_VERSION, "probe": probe, "shape": list(rows.shape), "dtype": str(rows.dtype),
            "embedding": hashlib.sha256(rows.tobytes()).hexdigest(), "labels": [str(label) for label in labels],
            "folds": [int(fold) for fold in folds],
            "settings": {
                key: value
                for key, value in asdict(settings).items()
                if {"neighbours": KNN, "logistic_c": LINEAR}.get(key, probe) == probe
            },
        }
    )  # fmt: skip


def _pack(answers: ProbeAnswers) -> dict[str, np.ndarray]:
    return {
        "predicted": answers.predicted, "probabilities": answers.probabilities, "classes": answers.classes,
    }  # fmt: skip


def _unpack(stored: Mapping[str, np.ndarray]) -> ProbeAnswers:
    return ProbeAnswers(stored["predicted"], stored["probabilities"], stored["classes"])
