"""How often each row is drawn in an epoch: a pure function of weights, seed and epoch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from pipeline.config import digest
from pipeline.data.sampler import permutation, uniforms
from pipeline.errors import ConfigError

DRAWS, ROTATION = 3, 4
PIECE = 2**20

Kind = Literal["independent", "stratified", "distinct"]


@dataclass(frozen=True)
class Draws:
    """Weighted draws of rows.

    Attributes:
        weights: of the rows of the store, ``(store rows,)``; 0 = never drawn. They need not sum to 1.
        rows: drawn an epoch, over all processes.
        kind: ``independent``, with replacement, as ``torch.utils.data.WeightedRandomSampler`` draws;
            ``stratified``: a row comes its expected number of times, rounded up or down (systematic sampling
            in a random order, Madow 1949), so that equal weights make a plain pass; ``distinct``: without
            replacement, one after the other by weight (Efraimidis and Spirakis, 2006).
    """

    weights: Float64[np.ndarray, " rows"]
    rows: int
    kind: Kind = "independent"

    def __post_init__(self) -> None:
        weights = self.weights
        if self.rows < 1 or not np.isfinite(weights).all() or weights.min(initial=0) < 0 or not weights.any():
            raise ConfigError(
                "weights to draw by are finite, not below 0 and not all 0, and an epoch has rows",
                got=f"{self.rows} rows by {len(weights)} weights",
            )
        positive = int((weights > 0).sum())
        if self.kind == "distinct" and self.rows > positive:
            raise ConfigError(
                "more distinct rows an epoch than may be drawn",
                expected=f"sampling.epoch_rows of at most {positive}",
                got=self.rows,
                run=f"--set sampling.epoch_rows={positive}, or sampling.draws='stratified'",
            )

    def counts(
        self, weights: Float64[np.ndarray, " rows"], seed: int, epoch: int
    ) -> Int64[np.ndarray, " rows"]:
        """Return how often each row is drawn in ``epoch``; they sum to ``rows``.

        Args:
            weights: of the rows that may be drawn, a part of the attribute of that name.
            seed: of the run.
            epoch: counts from 0.
        """
        draw = {"distinct": _distinct, "stratified": _stratified, "independent": _independent}[self.kind]
        return draw(weights, self.rows, seed, epoch)

    def digest(self, weights: Float64[np.ndarray, " rows"]) -> str:
        """Return the digest of what fixes the draws, the seed apart."""
        exact = hashlib.sha256(np.ascontiguousarray(weights, dtype="<f8").tobytes()).hexdigest()
        return digest({"weights": exact, "rows": self.rows, "kind": self.kind})


def _independent(weights: np.ndarray, rows: int, seed: int, epoch: int) -> np.ndarray:
    places = np.flatnonzero(weights)
    bounds = np.cumsum(weights[places])
    found = np.zeros(len(weights), dtype=np.int64)
    for first in range(0, rows, PIECE):
        drawn = uniforms(min(PIECE, rows - first), seed, epoch, DRAWS, first // PIECE)
        chosen = np.searchsorted(bounds, drawn * bounds[-1], side="right")
        found += np.bincount(places[np.minimum(chosen, len(places) - 1)], minlength=len(weights))
    return found


def _stratified(weights: np.ndarray, rows: int, seed: int, epoch: int) -> np.ndarray:
    order = permutation(len(weights), seed, epoch, ROTATION)
    bounds = np.cumsum(weights[order])
    bounds *= rows / bounds[-1]
    bounds[-1] = rows
    # Rounding of the sum must not lift a row of weight 0 (or a whole expected count) past an integer.
    ends = np.floor(np.round(bounds, 9) + float(uniforms(1, seed, epoch, DRAWS)[0])).astype(np.int64)
    found = np.empty(len(weights), dtype=np.int64)
    found[order] = np.diff(ends, prepend=0)
    return found


def _distinct(weights: np.ndarray, rows: int, seed: int, epoch: int) -> np.ndarray:
    places = np.flatnonzero(weights)
    # 1 - u is above 0: its logarithm is finite.
    waits = -np.log1p(-uniforms(len(places), seed, epoch, DRAWS)) / weights[places]
    found = np.zeros(len(weights), dtype=np.int64)
    found[places[np.argsort(waits, kind="stable")[:rows]]] = 1
    return found
