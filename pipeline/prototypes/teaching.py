"""A bank taught from clips, its threshold from the clips that taught nothing, and what keeping it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float, Int

from pipeline.deploy.sessions import open_session
from pipeline.errors import ParityError
from pipeline.prototypes import rejection
from pipeline.prototypes.bank import Features, Int8Rows, NeighbourBank, PrototypeBank, similarities
from pipeline.prototypes.episodes import Classifier, Episode
from pipeline.prototypes.rejection import Rejection

CHECK_ROWS, CHECK_FRAMES = 4, 96
FLOAT_TOLERANCE, INT8_TOLERANCE = 1e-3, 2e-2


@dataclass(frozen=True, eq=False)
class Taught:
    """What a device gets.

    Attributes:
        features: from embedding to feature.
        bank: taught, with its threshold; ``int8``: whether it is to be kept in 8 bits.
        rejection: how the threshold was chosen.
    """

    features: Features
    bank: PrototypeBank | NeighbourBank
    int8: bool
    rejection: Rejection

    @property
    def rows(self) -> Float[np.ndarray, "rows dim"]:
        """Prototypes, or neighbours."""
        return self.bank.prototypes if isinstance(self.bank, PrototypeBank) else self.bank.rows

    @property
    def bank_bytes(self) -> int:
        """Bytes of the bank: rows, and counts or classes, and scales where it is 8-bit."""
        rows, dim = (int(size) for size in self.rows.shape)
        return rows * (dim + 4 + 4) if self.int8 else rows * (4 * dim + 4)

    @property
    def bank_macs(self) -> int:
        """Multiply-accumulates of one decision: every row, and the norm of the feature."""
        rows, dim = (int(size) for size in self.rows.shape)
        return (rows + 1) * dim


def teach(
    embeddings: Float[np.ndarray, "clips dim"],
    classes: Int[np.ndarray, " clips"],
    episode: Episode,
    classifier: Classifier,
    *,
    spare_slots: int = 0,
) -> Taught:
    """Return the bank after the episode's taught clips, its threshold chosen on the clips asked for.

    Args:
        embeddings: one vector a clip.
        classes: of each clip, from 0.
        episode: which clips teach and which validate.
        classifier: metric, scaling, prototypes or neighbours, float or 8 bits.
        spare_slots: further prototypes without a class yet; a neighbour bank gets so many free rows.
    """
    number = int(classes.max()) + 1
    support, taught = embeddings[episode.support], classes[episode.support]
    features = Features.fitted(classifier.metric, classifier.scaling, support)
    x = features(support)
    bank: PrototypeBank | NeighbourBank
    if classifier.neighbours:
        free = np.zeros((spare_slots, x.shape[1]), np.float32)
        rows = np.concatenate([x, free])
        of_row = np.concatenate([taught, np.full(spare_slots, -1)]).astype(np.int64)
        bank = NeighbourBank(classifier.metric, rows, of_row, number, classifier.neighbours)
    else:
        empty = PrototypeBank.empty(classifier.metric, number + spare_slots, x.shape[1])
        bank = empty.enrolled(x, taught)
    asked, of_asked = features(embeddings[episode.query]), classes[episode.query]

    def best(allowed: np.ndarray) -> np.ndarray:
        return confidence(bank, asked, allowed, int8=classifier.int8)

    chosen = rejection.choose(*rejection.left_out_scores(best, of_asked, number))
    return Taught(features, replace(bank, threshold=chosen.threshold), classifier.int8, chosen)


def confidence(
    bank: PrototypeBank | NeighbourBank,
    features: Float[np.ndarray, "clips dim"],
    allowed: np.ndarray,
    *,
    int8: bool,
) -> Float[np.ndarray, " clips"]:
    """Return each clip's best score, or mean similarity of its nearest, among the allowed classes alone."""
    if isinstance(bank, PrototypeBank):
        rows, of_row, nearest = bank.prototypes, np.arange(len(bank.prototypes)), 1
    else:
        rows, of_row, nearest = bank.rows, bank.row_classes, bank.neighbours
    if int8:
        rows, features = Int8Rows.of(rows).dequantised(), Int8Rows.of(features).dequantised()
    inside = (of_row >= 0) & (of_row < len(allowed))
    inside[inside] = allowed[of_row[inside]]
    found = similarities(bank.metric, features, rows[inside])
    return np.asarray(-np.sort(-found, axis=1)[:, :nearest].mean(axis=1))


def check_file(path: Path, encoder: Path | onnx.ModelProto, taught: Taught, mels: int) -> float:
    """Compare an exported bank with numpy on the encoder's own embeddings; return the largest difference.

    Raises:
        ParityError: the scores or the decisions' confidence differ by more than rounding.
    """
    import onnxruntime

    log_mel = (
        np.random.default_rng(0).normal(-5.0, 3.0, (CHECK_ROWS, 1, mels, CHECK_FRAMES)).astype(np.float32)
    )
    if isinstance(encoder, Path):
        session = open_session(encoder)
    else:
        session = onnxruntime.InferenceSession(
            encoder.SerializeToString(), providers=["CPUExecutionProvider"]
        )
    (embedding,) = session.run(["embedding"], {session.get_inputs()[0].name: log_mel})
    everyone = np.ones(len(taught.rows), dtype=bool)
    if isinstance(taught.bank, PrototypeBank):
        everyone = taught.bank.counts > 0
    want = confidence(taught.bank, taught.features(embedding), everyone, int8=taught.int8)
    (got,) = open_session(path).run(["confidence"], {"log_mel": log_mel})
    scale = max(1.0, float(np.abs(want).max()))
    difference = float(np.abs(got - want).max()) / scale
    tolerance = INT8_TOLERANCE if taught.int8 else FLOAT_TOLERANCE
    if not difference <= tolerance:
        raise ParityError(
            f"{path.name} does not score as its bank does",
            expected=f"within {tolerance:g}",
            got=f"{difference:.3g}",
        )
    return difference
