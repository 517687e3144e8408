"""Out-of-fold answers of probes with their probabilities, kept on disk by content: no probe is fitted twice."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from pipeline import artifact, config
from pipeline.evaluation import probes
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
    path = None
    if cache is not None:
        path = cache / f"{answers_digest(probe, embedding, labels, folds, settings)}.npz"
        found = _read(path)
        if found is not None:
            return found
    made = probes.out_of_fold(probe, embedding, labels, folds, settings)
    if path is not None:
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, predicted=made.predicted, probabilities=made.probabilities, classes=made.classes
        )
        artifact.write_bytes(path, buffer.getvalue())
    return made


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


def _read(path: Path) -> ProbeAnswers | None:
    """Return what is in ``path``; None where it is absent or damaged, and then made anew."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return ProbeAnswers(stored["predicted"], stored["probabilities"], stored["classes"])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
