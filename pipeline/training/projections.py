"""Linear projections of one teacher's standardised rows: principal components, whitened or not, and random ones.

Whitening with a soft spectrum multiplies component i by ``eigenvalue_i^-power``: 0 leaves principal components
as they are, 0.5 makes them equal. Shrinkage moves the eigenvalues that are divided by towards their mean
(Ledoit and Wolf, 2004), so that directions which few rows support are not blown up to full strength.

Random directions are Gaussian with variance 1 / components, which keeps squared distances in expectation
(Johnson and Lindenstrauss, 1984; Dasgupta and Gupta, 2003), whatever the rows are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.config import TargetsConfig
from pipeline.errors import ConfigError

# A direction with less than this share of the strongest one's variance is rounding error, not signal.
RANK_TOLERANCE = 1e-10


class Moments:
    """Mean and covariance of rows that arrive in pieces (Chan, Golub and LeVeque, 1983), in float64."""

    def __init__(self, dimension: int) -> None:
        self.rows = 0
        self.mean = np.zeros(dimension)
        self._scatter = np.zeros((dimension, dimension))

    def add(self, rows: np.ndarray) -> None:
        """Take in ``rows`` of shape ``(n, dimension)``."""
        if not len(rows):
            return
        piece = np.asarray(rows, dtype=np.float64)
        mean = piece.mean(axis=0)
        centred = piece - mean
        shift = mean - self.mean
        total = self.rows + len(piece)
        self._scatter += centred.T @ centred + np.outer(shift, shift) * (self.rows * len(piece) / total)
        self.mean += shift * (len(piece) / total)
        self.rows = total

    @property
    def covariance(self) -> np.ndarray:
        """Population covariance, ``(dimension, dimension)``."""
        return self._scatter / max(self.rows, 1)


@dataclass(frozen=True)
class Projection:
    """One teacher's directions.

    Attributes:
        matrix: ``(dim, components)``, from standardised rows to targets.
        back: ``(components, dim)``, from targets to the standardised rows they determine.
        kept: variance of the standardised rows within the span of the directions.
        total: their whole variance.
        eigenvalues: of the principal components kept, falling; empty for random directions.
    """

    matrix: np.ndarray
    back: np.ndarray
    kept: float
    total: float
    eigenvalues: np.ndarray = field(default_factory=lambda: np.zeros(0))


def principal(
    correlation: np.ndarray, config: TargetsConfig, rows: int, *, lone: bool, share: float = 1.0
) -> Projection:
    """Return the leading principal directions of rows with this covariance, whitened if ``config`` says so.

    Args:
        correlation: ``(dim, dim)``, covariance of the standardised rows.
        config: transform, components, whiten_power and shrinkage.
        rows: how many there were, for messages.
        lone: a lone teacher is refused components that it does not span; one of several gives what it has.
        share: the teacher's weight in squared distances.

    Raises:
        ConfigError: more components than directions.
    """
    values, vectors = np.linalg.eigh(correlation)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    rank = int(np.sum(values > RANK_TOLERANCE * max(values[0], np.finfo(np.float64).tiny)))
    kept = _count(rank, config, lone=lone, what=f"the {rows} training rows span {rank} directions")
    directions = vectors[:, :kept]
    # An eigenvector's sign is arbitrary; fixing it makes the file a function of the rows alone.
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(kept)])
    factors = np.full(kept, np.sqrt(share))
    if config.transform == "whiten":
        shrunk = (1 - config.shrinkage) * values[:kept] + config.shrinkage * values.mean()
        factors *= shrunk**-config.whiten_power
    return Projection(
        directions * factors, (directions / factors).T.copy(), float(values[:kept].sum()), float(values.sum()),
        values[:kept],
    )  # fmt: skip


def random(
    correlation: np.ndarray, config: TargetsConfig, *, part: int = 0, lone: bool = True, share: float = 1.0
) -> Projection:
    """Return Gaussian directions, a function of ``config.seed`` and ``part``, the teacher's place among several.

    Raises:
        ConfigError: more components than dimensions.
    """
    dimension = len(correlation)
    count = _count(dimension, config, lone=lone, what=f"the teacher has {dimension} dimensions")
    drawn = np.random.default_rng([config.seed, part]).standard_normal((dimension, count))
    basis = np.linalg.qr(drawn)[0]
    matrix = drawn * np.sqrt(share / count)
    kept = float(np.einsum("ik,ij,jk->", basis, correlation, basis, optimize=True))
    return Projection(matrix, np.linalg.pinv(matrix), kept, float(np.trace(correlation)))


def _count(possible: int, config: TargetsConfig, *, lone: bool, what: str) -> int:
    wanted = possible if config.components is None else config.components
    count = wanted if lone else min(wanted, possible)
    if count > possible or possible == 0:
        raise ConfigError(
            f"targets.components = {count}, but {what}",
            expected=f"at most {possible}", got=count, run=f"--set targets.components={max(possible, 1)}",
        )  # fmt: skip
    return count
