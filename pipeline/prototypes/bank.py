"""A bank of class prototypes or of neighbours in numpy: what the exported graph computes, and its formula in words.

An embedding ``e`` becomes a feature ``x = (e - centre) * gain``, of unit length for the cosine. A class is the running
mean ``p`` of the features it was taught: after ``m`` more clips ``p' = (n p + x_1 + ... + x_m) / (n + m)``, so five
clips one by one give what five at once do, and nothing but ``p`` and ``n`` is kept. Scores are ``x . p / |p|`` (cosine)
or ``-|x - p|^2`` (Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017). A neighbour
bank keeps every feature and scores a class by its share of the ``neighbours`` nearest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from pipeline.errors import ConfigError

Metric = Literal["cosine", "euclidean"]
Scaling = Literal["raw", "centred", "standardised"]
LEAST_NORM = 1e-12
# Of the deviation over all dimensions: a dimension that never moves in a few clips says nothing, and is not blown up.
LEAST_DEVIATION = 1e-3
UNKNOWN = -1
INT8_MAX = 127


@dataclass(frozen=True, eq=False)
class Features:
    """From an embedding to what is compared: ``(e - centre) * gain``, then unit length for the cosine.

    Attributes:
        metric: ``cosine`` or ``euclidean``.
        centre, gain: (dim,) float32.
    """

    metric: Metric
    centre: Float[np.ndarray, " dim"]
    gain: Float[np.ndarray, " dim"]

    @classmethod
    def fitted(cls, metric: Metric, scaling: Scaling, embeddings: Float[np.ndarray, "clips dim"]) -> Features:
        """Return the features whose centre and gain are those of ``embeddings``.

        ``raw``: centre 0, gain 1; ``centred``: their mean, gain 1; ``standardised``: their mean, and one over their
        deviation in each dimension.
        """
        wide = np.asarray(embeddings, dtype=np.float64)
        centre, gain = np.zeros(wide.shape[1]), np.ones(wide.shape[1])
        if scaling != "raw":
            centre = wide.mean(axis=0)
        if scaling == "standardised":
            deviation = wide.std(axis=0)
            gain = 1.0 / np.maximum(deviation, max(LEAST_DEVIATION * float(wide.std()), LEAST_NORM))
        return cls(metric, centre.astype(np.float32), gain.astype(np.float32))

    def __call__(self, embeddings: Float[np.ndarray, "clips dim"]) -> Float[np.ndarray, "clips dim"]:
        """Return the features, float32."""
        x = (np.asarray(embeddings, dtype=np.float32) - self.centre) * self.gain
        return unit(x) if self.metric == "cosine" else x


@dataclass(frozen=True, eq=False)
class PrototypeBank:
    """One running mean a class.

    Attributes:
        metric: of the scores.
        prototypes: (classes, dim) float32 means of features; a class without clips is zeros.
        counts: (classes,) float32 clips that each class was taught.
        threshold: a best score below it is of no known class.
    """

    metric: Metric
    prototypes: Float[np.ndarray, "classes dim"]
    counts: Float[np.ndarray, " classes"]
    threshold: float = -np.inf

    @classmethod
    def empty(cls, metric: Metric, classes: int, dim: int) -> PrototypeBank:
        """Return a bank that knows nothing yet."""
        return cls(metric, np.zeros((classes, dim), np.float32), np.zeros(classes, np.float32))

    def enrolled(
        self, features: Float[np.ndarray, "clips dim"], classes: Int[np.ndarray, " clips"]
    ) -> PrototypeBank:
        """Return the bank after it was taught ``features``; a class of -1 teaches nothing.

        Raises:
            ConfigError: a class is none of the bank's.
        """
        given = np.asarray(classes)
        if given.size and (given.max() >= len(self.counts) or given.min() < UNKNOWN):
            raise ConfigError(
                "a class is none of the bank's",
                expected=f"-1 to {len(self.counts) - 1}",
                got=int(given.max()),
            )
        member = (given[:, None] == np.arange(len(self.counts))).astype(np.float32)
        total = self.prototypes * self.counts[:, None] + member.T @ np.asarray(features, np.float32)
        counts = self.counts + member.sum(axis=0)
        prototypes = total / np.maximum(counts, 1.0)[:, None]
        return replace(self, prototypes=prototypes.astype(np.float32), counts=counts.astype(np.float32))

    def scores(self, features: Float[np.ndarray, "clips dim"]) -> Float[np.ndarray, "clips classes"]:
        """Return every class's score; minus infinity for a class that was taught nothing."""
        found = similarities(self.metric, features, self.prototypes)
        return np.asarray(np.where(self.counts > 0, found, -np.inf))

    def predict(self, features: Float[np.ndarray, "clips dim"]) -> Int[np.ndarray, " clips"]:
        """Return the best class of each clip, -1 where its score is below the threshold."""
        return decided(self.scores(features), self.threshold)


@dataclass(frozen=True, eq=False)
class NeighbourBank:
    """Every feature that was taught, and its class.

    Attributes:
        metric: what is nearest.
        rows: (rows, dim) float32 features; ``row_classes``: (rows,) int64, -1 for a row not yet taught.
        classes: how many classes there are.
        neighbours: how many of the nearest vote.
        threshold: a mean similarity of the winners below it is of no known class.
    """

    metric: Metric
    rows: Float[np.ndarray, "rows dim"]
    row_classes: Int[np.ndarray, " rows"]
    classes: int
    neighbours: int
    threshold: float = -np.inf

    def enrolled(
        self, features: Float[np.ndarray, "clips dim"], classes: Int[np.ndarray, " clips"]
    ) -> NeighbourBank:
        """Return the bank with ``features`` behind its rows."""
        rows = np.concatenate([self.rows, np.asarray(features, np.float32)])
        return replace(
            self, rows=rows, row_classes=np.concatenate([self.row_classes, classes]).astype(np.int64)
        )

    def scores(self, features: Float[np.ndarray, "clips dim"]) -> Float[np.ndarray, "clips classes"]:
        """Return each class's share of the ``neighbours`` nearest rows.

        Raises:
            ConfigError: fewer rows than neighbours.
        """
        near, _ = self._nearest(features)
        votes = self.row_classes[near][:, :, None] == np.arange(self.classes)
        return np.asarray(votes.mean(axis=1, dtype=np.float32))

    def confidence(self, features: Float[np.ndarray, "clips dim"]) -> Float[np.ndarray, " clips"]:
        """Return the mean similarity of the ``neighbours`` nearest rows."""
        return np.asarray(self._nearest(features)[1].mean(axis=1))

    def predict(self, features: Float[np.ndarray, "clips dim"]) -> Int[np.ndarray, " clips"]:
        """Return the class with most votes (the first of several), -1 where nothing near is near enough."""
        best = self.scores(features).argmax(axis=1)
        return np.asarray(np.where(self.confidence(features) < self.threshold, UNKNOWN, best))

    def _nearest(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if (self.row_classes >= 0).sum() < self.neighbours:
            raise ConfigError(
                "a bank holds fewer clips than neighbours vote",
                expected=f">= {self.neighbours}", got=int((self.row_classes >= 0).sum()), run="--neighbours 1",
            )  # fmt: skip
        found = similarities(self.metric, features, self.rows)
        found = np.where(self.row_classes >= 0, found, -np.inf)
        near = np.argsort(-found, axis=1, kind="stable")[:, : self.neighbours]
        return near, np.take_along_axis(found, near, axis=1)


@dataclass(frozen=True, eq=False)
class Int8Rows:
    """Rows in 8 bits, symmetric, each with its own scale: ``row ~ scale * values``.

    Attributes:
        values: (rows, dim) int8, largest magnitude 127.
        scales: (rows,) float32.
    """

    values: Int8[np.ndarray, "rows dim"]
    scales: Float[np.ndarray, " rows"]

    @classmethod
    def of(cls, rows: Float[np.ndarray, "rows dim"]) -> Int8Rows:
        """Return ``rows`` rounded, halves to even, to 255 levels each; a row of zeros has scale 1."""
        rows = np.asarray(rows, np.float32)
        largest = np.abs(rows).max(axis=1)
        scales = np.where(largest > 0, largest / np.float32(INT8_MAX), 1.0).astype(np.float32)
        values = np.clip(np.rint(rows / scales[:, None]), -INT8_MAX, INT8_MAX)
        return cls(values.astype(np.int8), scales)

    def dequantised(self) -> Float[np.ndarray, "rows dim"]:
        """Return the rows in float32 again."""
        return np.asarray(self.values.astype(np.float32) * self.scales[:, None])


def unit(x: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    """Return the rows at length 1; a row of zeros stays."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), LEAST_NORM))


def similarities(
    metric: Metric, x: Float[np.ndarray, "clips dim"], rows: Float[np.ndarray, "rows dim"]
) -> Float[np.ndarray, "clips rows"]:
    """Return the cosine, or minus the squared distance, of every clip's feature and every row."""
    product = x @ rows.T
    if metric == "cosine":
        norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(rows, axis=1)[None, :]
        return np.asarray(product / np.maximum(norms, LEAST_NORM))
    squares = (x**2).sum(axis=1)[:, None] + (rows**2).sum(axis=1)[None, :]
    return np.asarray(2.0 * product - squares)


def decided(scores: Float[np.ndarray, "clips classes"], threshold: float) -> Int[np.ndarray, " clips"]:
    """Return the best class of each clip, -1 where its score is below ``threshold``."""
    return np.asarray(np.where(scores.max(axis=1) < threshold, UNKNOWN, scores.argmax(axis=1)))


def balanced_accuracy(predicted: Int[np.ndarray, " clips"], classes: Int[np.ndarray, " clips"]) -> float:
    """Return the mean over classes of the share of their clips that are right."""
    right: Bool[np.ndarray, " clips"] = predicted == classes
    return float(np.mean([right[classes == one].mean() for one in np.unique(classes)]))
